package imagesvc_test

import (
	"errors"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// BenchmarkPullLarge pulls one layer of 64 MiB that is fetched by three connections.
func BenchmarkPullLarge(b *testing.B) {
	server := registrytest.Start(b, registrytest.Options{})
	img := image(registrytest.NewLayer(b, ocispec.MediaTypeImageLayer, map[string][]byte{"big": noise(64<<20, 5)}))
	server.Push(b, "a/b", "v1", img)
	b.SetBytes(img.Size())
	n := newNode(b, registry.Config{NoProgress: time.Minute})
	n.stop(b)
	n.config.Connections = 3
	n.start(b)
	for b.Loop() {
		n.pull(b, server.Host+"/a/b:v1")
		b.StopTimer()
		if err := errors.Join(n.Remove(b.Context(), server.Host+"/a/b:v1"), n.Collect(b.Context())); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
