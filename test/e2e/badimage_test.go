package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"criserver/pkg/imagesvc/registry/registrytest"
)

// tarLayer makes a layer of any entries. Regular ones have the content "escaped".
func tarLayer(t *testing.T, entries ...tar.Header) registrytest.Layer {
	t.Helper()
	const body = "escaped\n"
	var plain, blob bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, h := range entries {
		h.Mode = 0o755
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(body))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	gz := gzip.NewWriter(&blob)
	err := w.Close()
	if err == nil {
		_, err = gz.Write(plain.Bytes())
	}
	if err == nil {
		err = gz.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return registrytest.Layer{MediaType: ocispec.MediaTypeImageLayerGzip, Plain: plain.Bytes(), Blob: blob.Bytes()}
}

func tarFile(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }

func tarLink(kind byte, name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: kind, Linkname: target}
}

// TestBadImages pulls images that no runtime should take, from a registry that takes them.
func TestBadImages(t *testing.T) {
	r := registrytest.Start(t, registrytest.Options{})
	canary := filepath.Join(t.TempDir(), "canary") // what layers try to write
	up := strings.Repeat("../", 40)
	invalid := []codes.Code{codes.InvalidArgument}
	one := registrytest.NewLayer(t, ocispec.MediaTypeImageLayerGzip, map[string][]byte{"file": []byte("text")})
	other := registrytest.NewLayer(t, ocispec.MediaTypeImageLayerGzip, map[string][]byte{"other": []byte("more")})
	layers := func(l ...registrytest.Layer) *registrytest.Image { return registrytest.NewImage(runtime.GOARCH, l...) }
	rows := []struct {
		name string
		img  *registrytest.Image
		want outcome
	}{
		{"name-leaves", layers(one, tarLayer(t, tarFile(up+canary))), outcome{invalid, []string{"canary"}}},
		{"passwd", layers(tarLayer(t, tarFile("../../etc/passwd"))), outcome{invalid, []string{"../../etc/passwd"}}},
		{"symlink-leaves", layers(tarLayer(t, tarLink(tar.TypeSymlink, "tmp", up), tarFile("tmp"+canary))), outcome{invalid, []string{"tmp"}}},
		{"symlink-of-lower", layers(tarLayer(t, tarLink(tar.TypeSymlink, "a", ".."), tarFile("a/../"+up+canary))), outcome{invalid, nil}},
		{"hardlink-leaves", layers(tarLayer(t, tarLink(tar.TypeLink, "passwd", up+"etc/passwd"))), outcome{invalid, []string{"passwd"}}},
		{"hardlink-by-symlink", layers(tarLayer(t, tarLink(tar.TypeSymlink, "out", up+"etc"), tarLink(tar.TypeLink, "passwd", "out/passwd"))),
			outcome{invalid, []string{"passwd"}}},
		{"10000-layers", changed(layers(repeat(one, 10_000)...), func(i *registrytest.Image) {
			i.Layers = i.Layers[:1] // it is one blob to push
		}), outcome{invalid, []string{"layers"}}},
		{"layer-missing-in-config", changed(layers(one, other), func(i *registrytest.Image) {
			i.Config.RootFS.DiffIDs = i.Config.RootFS.DiffIDs[:1]
		}), outcome{invalid, []string{"layers"}}},
		{"layer-missing-in-manifest", changed(layers(one, other), func(i *registrytest.Image) {
			i.Manifest.Layers = i.Manifest.Layers[:1]
		}), outcome{invalid, []string{"layers"}}},
		{"wrong-diffid", changed(layers(one, other), func(i *registrytest.Image) {
			i.Config.RootFS.DiffIDs[1] = digest.FromString("another tar")
		}), outcome{invalid, []string{digest.FromString("another tar").String()}}},
		{"no-tar", layers(registrytest.Layer{MediaType: ocispec.MediaTypeImageLayer, Plain: []byte(strings.Repeat("x", 2048)), Blob: []byte(strings.Repeat("x", 2048))}),
			outcome{invalid, nil}},
		{"no-gzip", layers(registrytest.Layer{MediaType: ocispec.MediaTypeImageLayerGzip, Plain: []byte("x"), Blob: []byte("no gzip")}),
			outcome{invalid, nil}},
		{"config-no-json", badConfig(t, layers(one), []byte("{no json")), outcome{invalid, []string{"config"}}},
	}
	for _, row := range rows {
		r.Push(t, "bad/"+row.name, "v1", row.img)
	}
	foreign := registrytest.NewImage("s390x", one)
	r.Push(t, "bad/foreign", "v0", foreign)
	index := registrytest.NewIndex(ocispec.MediaTypeImageIndex, foreign.Descriptor())
	r.PushManifest(t, "bad/foreign", "v1", ocispec.MediaTypeImageIndex, index)
	n := newNode(t)
	n.collect()
	before := n.stored()
	try := func(name, archive string, want outcome) {
		unchanged := func(t *testing.T) {
			if now := n.visible(); len(now) > 0 {
				t.Errorf("there are images: %v", now)
			}
			if _, err := os.Lstat(canary); err == nil {
				t.Errorf("%s was written", canary)
			}
		}
		t.Run(name, func(t *testing.T) {
			n.try(t, before, r.Host+"/bad/"+name+":v1", nil, want)
			unchanged(t)
		})
		t.Run(name+"/import", func(t *testing.T) {
			out, err := n.tryImage(archive, "import", "-", "--name", "bad/imported:v1")
			if err == nil {
				t.Errorf("is imported: %s", out)
			}
			for _, text := range want.texts {
				if err != nil && !strings.Contains(err.Error(), text) {
					t.Errorf("the error does not say %q: %v", text, err)
				}
			}
			n.collect()
			n.wantStored(before)
			unchanged(t)
		})
	}
	for _, row := range rows {
		try(row.name, layoutTar(t, row.img, row.img.Descriptor()), row.want)
	}
	root := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(index), Size: int64(len(index))}
	try("foreign", layoutTar(t, foreign, root, index), outcome{[]codes.Code{codes.InvalidArgument, codes.NotFound}, []string{"linux/" + runtime.GOARCH, "s390x"}})
}

// layoutTar writes an image as an archive in the form of an OCI layout, in which root is what it is known by.
func layoutTar(t *testing.T, img *registrytest.Image, root ocispec.Descriptor, more ...[]byte) (file string) {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(name string, data []byte) {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))})
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blobs := map[string][]byte{} // an image may have a blob more than once
	for _, l := range img.Layers {
		more = append(more, l.Blob)
	}
	for _, data := range append(more, img.ManifestData, img.ConfigData) {
		blobs[digest.FromBytes(data).Encoded()] = data
	}
	add(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	for name, data := range blobs {
		add("blobs/sha256/"+name, data)
	}
	add(ocispec.ImageIndexFile, registrytest.NewIndex(ocispec.MediaTypeImageIndex, root))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestSymlinkToRoot: what is to be written behind a link to the root is refused, and written neither there nor here.
func TestSymlinkToRoot(t *testing.T) {
	r := registrytest.Start(t, registrytest.Options{})
	name := fmt.Sprintf("criserver-e2e-%d", os.Getpid())
	r.Push(t, "links/root", "v1", registrytest.NewImage(runtime.GOARCH,
		tarLayer(t, tarLink(tar.TypeSymlink, "tmp", "/"), tarFile("tmp/"+name))))
	n := newNode(t)
	n.collect()
	before := n.stored()
	outcome{[]codes.Code{codes.InvalidArgument}, []string{"tmp/" + name}}.check(t, n.pullAs(r.Host+"/links/root:v1", nil))
	if _, err := os.Lstat("/" + name); err == nil {
		_ = os.Remove("/" + name)
		t.Errorf("/%s was written", name)
	}
	n.collect()
	n.wantStored(before)
}

func changed(i *registrytest.Image, change func(*registrytest.Image)) *registrytest.Image {
	change(i)
	return i.Seal()
}

// badConfig has an image say that these bytes are its configuration.
func badConfig(t *testing.T, i *registrytest.Image, config []byte) *registrytest.Image {
	t.Helper()
	i.ConfigData = config
	i.Manifest.Config.Digest, i.Manifest.Config.Size = digest.FromBytes(config), int64(len(config))
	var err error
	if i.ManifestData, err = json.Marshal(i.Manifest); err != nil {
		t.Fatal(err)
	}
	return i
}

func repeat(l registrytest.Layer, n int) []registrytest.Layer {
	all := make([]registrytest.Layer, n)
	for i := range all {
		all[i] = l
	}
	return all
}
