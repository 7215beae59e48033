package archive_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// Bytes that do not compress, so that the numbers are those of hashing and copying.
func largeImage(b *testing.B) *registrytest.Image {
	data := make([]byte, 128<<20)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{}), data); err != nil {
		b.Fatal(err)
	}
	return registrytest.NewImage("amd64", registrytest.NewLayer(b, ocispec.MediaTypeImageLayer, map[string][]byte{"data": data}))
}

func BenchmarkRead(b *testing.B) {
	data := write(b, archive.Docker, source(largeImage(b), busybox))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		dir, err := os.MkdirTemp(b.TempDir(), "")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := archive.Read(b.Context(), bytes.NewReader(data), dir, generous); err != nil {
			b.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	src := source(largeImage(b), busybox)
	b.SetBytes(src.Layers[0].Desc.Size)
	b.ReportAllocs()
	for b.Loop() {
		if err := archive.Write(b.Context(), io.Discard, archive.OCI, []archive.ImageSource{src}); err != nil {
			b.Fatal(err)
		}
	}
}
