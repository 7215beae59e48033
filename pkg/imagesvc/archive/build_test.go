package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/registry/registrytest"
)

var generous = archive.Limits{Bytes: 1 << 30, Entries: 1000}

const busybox = "docker.io/library/busybox:latest"

// entry is one of a tar; a regular file unless kind says otherwise.
type entry struct {
	name string
	data []byte
	kind byte
	link string
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Size: int64(len(e.data)), Mode: 0o644}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// testImage has two layers with the content named, in the form of the media type.
func testImage(t testing.TB, mediaType, content string) *registrytest.Image {
	t.Helper()
	return registrytest.NewImage("amd64",
		registrytest.NewLayer(t, mediaType, map[string][]byte{"base": bytes.Repeat([]byte("base"), 5000)}),
		registrytest.NewLayer(t, mediaType, map[string][]byte{"top": []byte(content)}))
}

func blobName(data []byte) string { return "blobs/sha256/" + digest.FromBytes(data).Encoded() }

func blobs(docs ...[]byte) []entry {
	var out []entry
	for _, d := range docs {
		out = append(out, entry{name: blobName(d), data: d})
	}
	return out
}

func blobsOf(img *registrytest.Image) []entry {
	out := blobs(img.ManifestData, img.ConfigData)
	for _, l := range img.Layers {
		out = append(out, blobs(l.Blob)...)
	}
	return out
}

// layout are the files of an OCI layout.
func layout(t testing.TB, index ocispec.Index, blobs ...entry) []entry {
	index.SchemaVersion = 2
	return append([]entry{
		{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{name: "index.json", data: toJSON(t, index)},
	}, blobs...)
}

func indexOf(descs ...ocispec.Descriptor) ocispec.Index { return ocispec.Index{Manifests: descs} }

func annotated(d ocispec.Descriptor, annotations ...string) ocispec.Descriptor {
	d.Annotations = map[string]string{}
	for pair := range slices.Chunk(annotations, 2) {
		d.Annotations[pair[0]] = pair[1]
	}
	return d
}

type item struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// read reads an archive that must be good.
func read(t testing.TB, data []byte) *archive.Archive {
	t.Helper()
	a, err := archive.Read(t.Context(), bytes.NewReader(data), t.TempDir(), generous)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func only(t testing.TB, a *archive.Archive) archive.Image {
	t.Helper()
	images := a.Images()
	if len(images) != 1 {
		t.Fatalf("got images %+v, want one", images)
	}
	return images[0]
}

func blob(t testing.TB, a *archive.Archive, d digest.Digest) []byte {
	t.Helper()
	f, size, err := a.Blob(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(data)) != size || d.Algorithm().FromBytes(data) != d {
		t.Fatalf("blob %s: size %d with %d bytes of digest %s", d, size, len(data), digest.FromBytes(data))
	}
	return data
}

// checkWhole reads all that the manifest of an image names, and returns it.
func checkWhole(t testing.TB, a *archive.Archive, img archive.Image) ocispec.Manifest {
	t.Helper()
	mediaType, data, err := a.Manifest(t.Context(), img.Root.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if mediaType != img.Root.MediaType || digest.FromBytes(data) != img.Root.Digest || int64(len(data)) != img.Root.Size {
		t.Fatalf("manifest of type %s, digest %s, %d bytes is not %+v", mediaType, digest.FromBytes(data), len(data), img.Root)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if got := blob(t, a, d.Digest); int64(len(got)) != d.Size {
			t.Fatalf("blob %s has %d bytes, its descriptor says %d", d.Digest, len(got), d.Size)
		}
	}
	return m
}

func source(img *registrytest.Image, names ...string) archive.ImageSource {
	src := archive.ImageSource{Names: names, Manifest: img.Descriptor(), ManifestData: img.ManifestData, Config: img.Manifest.Config,
		ConfigData: img.ConfigData}
	for _, l := range img.Layers {
		src.Layers = append(src.Layers, archive.LayerSource{Desc: l.Descriptor(), Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(l.Blob)), nil
		}})
	}
	return src
}

func write(t testing.TB, format archive.Format, sources ...archive.ImageSource) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := archive.Write(t.Context(), &buf, format, sources); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
