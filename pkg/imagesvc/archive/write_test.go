package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/imagesvc/verify"
)

var formats = []archive.Format{archive.OCI, archive.Docker}

func TestWriteAndRead(t *testing.T) {
	one, two := testImage(t, ocispec.MediaTypeImageLayerGzip, "one"), testImage(t, ocispec.MediaTypeImageLayerGzip, "two")
	byDigest := "quay.io/a/b@" + two.Digest().String()
	sources := []archive.ImageSource{source(one, "busybox", "quay.io/a/b:v1"), source(two, byDigest), source(one, "busybox:latest", "c:1")}
	for _, format := range formats {
		data := write(t, format, sources...)
		a := read(t, data)
		images := a.Images()
		if len(images) != 2 || images[0].Root.Digest != one.Digest() || images[1].Root.Digest != two.Digest() ||
			!slices.Equal(images[0].Names, []string{busybox, "quay.io/a/b:v1", "docker.io/library/c:1"}) ||
			!slices.Equal(images[1].Names, []string{byDigest}) {
			t.Errorf("%s: got %+v", format, images)
		}
		for _, img := range images {
			checkWhole(t, a, img)
		}
		if again := write(t, format, sources...); !bytes.Equal(again, data) {
			t.Errorf("%s: the same images gave other bytes", format)
		}
	}
}

// files of a tar that is in order: names once, fixed times, directories before what is in them.
func files(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		dir := h.Name[:strings.LastIndex(strings.TrimSuffix(h.Name, "/"), "/")+1]
		if _, ok := out[dir]; dir != "" && !ok {
			t.Errorf("%s comes before its directory", h.Name)
		}
		if _, twice := out[h.Name]; twice || h.ModTime.Unix() != 0 || h.Uid != 0 || h.Uname != "" {
			t.Errorf("entry %+v, twice: %v", h, twice)
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteDocuments(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayer, "one")
	byDigest := "docker.io/library/busybox@" + img.Digest().String()
	got := files(t, write(t, archive.Docker, source(img, busybox, byDigest)))
	var index ocispec.Index
	if err := json.Unmarshal(got["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 2 || index.SchemaVersion != 2 || index.MediaType != ocispec.MediaTypeImageIndex {
		t.Fatalf("index.json: %s", got["index.json"])
	}
	for i, want := range []map[string]string{
		{"io.containerd.image.name": busybox, "org.opencontainers.image.ref.name": "latest"},
		{"io.containerd.image.name": byDigest, "org.opencontainers.image.ref.name": byDigest},
	} {
		d := index.Manifests[i]
		if d.Digest != img.Digest() || d.Platform == nil || d.Platform.OS != "linux" || len(d.Annotations) != 2 {
			t.Errorf("index.json has %+v", d)
		}
		for k, v := range want {
			if d.Annotations[k] != v {
				t.Errorf("annotation %s is %q, want %q", k, d.Annotations[k], v)
			}
		}
	}
	var items []item
	if err := json.Unmarshal(got["manifest.json"], &items); err != nil {
		t.Fatal(err)
	}
	if len(items) != 1 || !slices.Equal(items[0].RepoTags, []string{"busybox:latest"}) || !bytes.Equal(got[items[0].Config], img.ConfigData) ||
		len(items[0].Layers) != 2 || !bytes.Equal(got[items[0].Layers[0]], img.Layers[0].Plain) || !bytes.Equal(got[items[0].Layers[1]], img.Layers[1].Plain) {
		t.Errorf("manifest.json: %s", got["manifest.json"])
	}
	if _, ok := files(t, write(t, archive.OCI, source(img)))["manifest.json"]; ok {
		t.Error("an OCI layout has manifest.json")
	}
}

// What is wrong before the first byte is found before it.
func TestWriteInvalid(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayerZstd, "one")
	for what, tc := range map[string]struct {
		format archive.Format
		change func(*archive.ImageSource)
		want   string
	}{
		"format":               {"zip", func(*archive.ImageSource) {}, `format "zip"`},
		"name":                 {archive.OCI, func(s *archive.ImageSource) { s.Names = []string{"UPPER"} }, `image name "UPPER"`},
		"manifest data":        {archive.OCI, func(s *archive.ImageSource) { s.ManifestData = append(s.ManifestData, ' ') }, "its data are not those of"},
		"configuration":        {archive.OCI, func(s *archive.ImageSource) { s.ConfigData = []byte("{}") }, "configuration: "},
		"other configuration":  {archive.OCI, func(s *archive.ImageSource) { s.Config, s.ConfigData = s.Manifest, s.ManifestData }, "not what the manifest names"},
		"digest":               {archive.OCI, func(s *archive.ImageSource) { s.Manifest.Digest = "sha256:../.." }, "invalid checksum digest"},
		"a layer less":         {archive.OCI, func(s *archive.ImageSource) { s.Layers = s.Layers[:1] }, "not what the manifest names"},
		"another layer's size": {archive.OCI, func(s *archive.ImageSource) { s.Layers[1].Desc.Size++ }, "not what the manifest names"},
		"layers in disorder":   {archive.OCI, func(s *archive.ImageSource) { slices.Reverse(s.Layers) }, "not what the manifest names"},
		"no content":           {archive.OCI, func(s *archive.ImageSource) { s.Layers[0].Open = nil }, "has no content"},
		"an index":             {archive.OCI, func(s *archive.ImageSource) { s.Manifest.MediaType = ocispec.MediaTypeImageIndex }, "is no manifest"},
		"zstd for docker":      {archive.Docker, func(*archive.ImageSource) {}, "compressed by zstd"},
	} {
		src := source(img, busybox)
		src.ManifestData, src.Layers = slices.Clone(src.ManifestData), slices.Clone(src.Layers)
		tc.change(&src)
		var buf bytes.Buffer
		err := archive.Write(t.Context(), &buf, tc.format, []archive.ImageSource{src})
		if !errors.Is(err, archive.ErrInvalid) || !strings.Contains(err.Error(), tc.want) || buf.Len() > 0 {
			t.Errorf("%s: got %v and %d bytes, want an ErrInvalid with %q", what, err, buf.Len(), tc.want)
		}
	}
	if err := archive.Write(t.Context(), io.Discard, archive.OCI, nil); !errors.Is(err, archive.ErrInvalid) {
		t.Errorf("no images: %v", err)
	}
}

// tracked counts what is open.
type tracked struct {
	io.Reader
	open *int
}

func (r tracked) Close() error { *r.open--; return nil }

// A layer that is not what its descriptor says makes no whole archive.
func TestWriteBadLayer(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayer, "one")
	good := img.Layers[1].Blob
	broken := errors.New("the disk broke")
	open := 0
	for what, tc := range map[string]struct {
		give func() (io.Reader, error)
		want error
	}{
		"short":  {func() (io.Reader, error) { return bytes.NewReader(good[:len(good)-1]), nil }, verify.ErrTruncated},
		"empty":  {func() (io.Reader, error) { return bytes.NewReader(nil), nil }, verify.ErrTruncated},
		"long":   {func() (io.Reader, error) { return bytes.NewReader(append(slices.Clone(good), 'x')), nil }, verify.ErrDigest},
		"other":  {func() (io.Reader, error) { return bytes.NewReader(make([]byte, len(good))), nil }, verify.ErrDigest},
		"broken": {func() (io.Reader, error) { return &failing{good[:10], broken}, nil }, broken},
		"absent": {func() (io.Reader, error) { return nil, broken }, broken},
	} {
		src := source(img, busybox)
		src.Layers[1].Open = func(context.Context) (io.ReadCloser, error) {
			r, err := tc.give()
			if err != nil {
				return nil, err
			}
			open++
			return tracked{r, &open}, nil
		}
		var buf bytes.Buffer
		if err := archive.Write(t.Context(), &buf, archive.OCI, []archive.ImageSource{src}); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", what, err, tc.want)
		}
		if open != 0 {
			t.Errorf("%s: %d readers were left open", what, open)
		}
		if _, err := archive.Read(t.Context(), &buf, t.TempDir(), generous); !errors.Is(err, archive.ErrInvalid) {
			t.Errorf("%s: reading what was written: %v", what, err)
		}
	}
}

// full is a disk of so many bytes.
type full struct{ left int }

var errFull = errors.New("disk full")

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteNowhere(t *testing.T) {
	src := source(testImage(t, ocispec.MediaTypeImageLayer, "one"), busybox)
	size := len(write(t, archive.Docker, src))
	for n := 0; n < size; n += 500 {
		if err := archive.Write(t.Context(), &full{n}, archive.Docker, []archive.ImageSource{src}); !errors.Is(err, errFull) {
			t.Fatalf("disk of %d bytes: %v", n, err)
		}
	}
	if err := archive.Write(t.Context(), &full{size}, archive.Docker, []archive.ImageSource{src}); err != nil {
		t.Errorf("disk that is large enough: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := archive.Write(ctx, io.Discard, archive.OCI, []archive.ImageSource{src}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestWriteNothingInIt(t *testing.T) {
	img := registrytest.NewImage("amd64")
	for _, format := range formats {
		a := read(t, write(t, format, source(img, busybox)))
		if m := checkWhole(t, a, only(t, a)); len(m.Layers) != 0 {
			t.Errorf("%s: got %+v", format, m)
		}
	}
}
