package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
)

// FuzzRead gives Read what is no archive, or nearly one. It never panics, keeps within its limits and its directory, keeps
// nothing under a digest that is another's, and gives no image whose manifest it cannot give.
func FuzzRead(f *testing.F) {
	img := testImage(f, ocispec.MediaTypeImageLayerGzip, "one")
	both := write(f, archive.Docker, source(img, busybox))
	f.Add(both)
	f.Add(gzipped(f, both))
	f.Add(zstandard(f, both))
	f.Add(makeTar(f, entry{name: "manifest.json", data: toJSON(f, []item{{"c", []string{"a:b"}, []string{"l", "x/layer.tar"}}})},
		entry{name: "c", data: img.ConfigData}, entry{name: "l", data: []byte("l")}, entry{name: "x/layer.tar", kind: tar.TypeSymlink, link: "../l"}))
	f.Add(makeTar(f, layout(f, indexOf(annotated(img.Descriptor(), "org.opencontainers.image.ref.name", "v1")), blobsOf(img)...)...))
	f.Add(makeTar(f, entry{name: "../escaped", data: []byte("x")}, entry{name: "/abs", kind: tar.TypeSymlink, link: "/etc"}))
	limits := archive.Limits{Bytes: 1 << 20, Entries: 50}
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "dir")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		a, err := archive.Read(t.Context(), bytes.NewReader(data), dir, limits)
		if err != nil && !errors.Is(err, archive.ErrInvalid) {
			t.Fatalf("error of no kind: %v", err)
		}
		checkKept(t, parent, dir, limits)
		if err != nil {
			return
		}
		if len(a.Images()) == 0 {
			t.Fatal("no image and no error")
		}
		for _, img := range a.Images() {
			mediaType, data, err := a.Manifest(t.Context(), img.Root.Digest)
			if err != nil || mediaType != img.Root.MediaType || int64(len(data)) != img.Root.Size {
				t.Fatalf("image %+v: %s %s %v", img, mediaType, data, err)
			}
		}
	})
}

func checkKept(t *testing.T, parent, dir string, limits archive.Limits) {
	t.Helper()
	if files, err := os.ReadDir(parent); err != nil || len(files) != 1 {
		t.Fatalf("beside the directory: %v, %v", files, err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, file := range files {
		alg, hex, isBlob := strings.Cut(file.Name(), "-")
		if !file.Type().IsRegular() || !isBlob && file.Name() != "spool" {
			t.Fatalf("%s was kept", file)
		}
		f, err := os.Open(filepath.Join(dir, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		digester := digest.Algorithm(alg)
		if !isBlob {
			digester = digest.Canonical
		}
		h := digester.Hash()
		n, err := io.Copy(h, f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := digest.NewDigest(digester, h); isBlob && got.Encoded() != hex {
			t.Fatalf("%s has digest %s", file.Name(), got)
		}
		sum += n
	}
	if sum > 2*limits.Bytes { // manifests that were made come on top
		t.Fatalf("%d bytes were kept", sum)
	}
}
