package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc/registry/registrytest"
)

// maxPullMemory is what a pull may take above what the daemon has when it is idle.
const maxPullMemory = 64 << 20

// TestPullMemory pulls large images from a registry by a fresh daemon, and asks the kernel what that took at most.
func TestPullMemory(t *testing.T) {
	random := rand.NewChaCha8([32]byte{7})
	gz := func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestSpeed) }
	zst := func(window int) func(w io.Writer) (io.WriteCloser, error) {
		return func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
		}
	}
	m := registrytest.NewMemory(t)
	for _, shape := range []struct {
		name      string
		layers    int
		size      int64 // of each, unpacked
		mediaType string
		compress  func(io.Writer) (io.WriteCloser, error)
		content   func() io.Reader
	}{
		{"one-gigabyte", 1, 1 << 30, ocispec.MediaTypeImageLayerGzip, gz, repeated},
		{"incompressible", 4, 32 << 20, ocispec.MediaTypeImageLayerGzip, gz, func() io.Reader { return random }},
		{"zstd", 4, 128 << 20, ocispec.MediaTypeImageLayerZstd, zst(8 << 20), repeated},
		{"zstd-large-windows", 4, 128 << 20, ocispec.MediaTypeImageLayerZstd, zst(32 << 20), repeated},
	} {
		var layers []registrytest.Layer
		for i := range shape.layers {
			layers = append(layers, largeLayer(t, fmt.Sprintf("layer%d", i), shape.size, shape.mediaType, shape.compress, shape.content()))
		}
		m.Add("memory/"+shape.name, "v1", registrytest.NewImage(runtime.GOARCH, layers...))
		t.Run(shape.name, func(t *testing.T) {
			n := newNode(t)
			idle := n.memory("VmRSS:")
			if err := os.WriteFile(n.proc()+"/clear_refs", []byte("5"), 0); err != nil { // resets the peak, proc_pid_clear_refs(5)
				t.Fatal(err)
			}
			spec := &runtimeapi.ImageSpec{Image: m.Host + "/memory/" + shape.name + ":v1"}
			if _, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec}); err != nil {
				t.Fatalf("%v\n%s", err, n.log())
			}
			above := n.memory("VmHWM:") - idle
			t.Logf("idle %d KiB, at most %d KiB more", idle>>10, above>>10)
			if above > maxPullMemory {
				t.Errorf("the pull took %d MiB, at most %d are right", above>>20, int64(maxPullMemory)>>20)
			}
			info, err := n.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if used := info.ImageFilesystems[0].UsedBytes.Value; used < uint64(shape.layers)*uint64(shape.size) {
				t.Errorf("%d bytes are there: the test did not test much", used)
			}
		})
	}
}

// repeated is text that compresses well, without zeros, which need not be written.
func repeated() io.Reader {
	return &cycle{text: bytes.Repeat([]byte("forty-two bytes of a text that is repeated"), 1000)}
}

type cycle struct {
	text []byte
	at   int
}

func (c *cycle) Read(p []byte) (int, error) {
	n := copy(p, c.text[c.at:])
	c.at = (c.at + n) % len(c.text)
	return n, nil
}

// largeLayer has one file and one below it of the size together. Its tar is never in memory.
func largeLayer(t *testing.T, name string, size int64, mediaType string, compress func(io.Writer) (io.WriteCloser, error), content io.Reader) registrytest.Layer {
	t.Helper()
	var blob bytes.Buffer
	compressed, err := compress(&blob)
	if err != nil {
		t.Fatal(err)
	}
	hash := digest.Canonical.Digester()
	w := tar.NewWriter(io.MultiWriter(compressed, hash.Hash()))
	for _, file := range []string{name, name + ".d/file"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: size / 2}))
		if err == nil {
			_, err = io.CopyN(w, content, size/2)
		}
	}
	if err := errors.Join(err, w.Close(), compressed.Close()); err != nil {
		t.Fatal(err)
	}
	return registrytest.Layer{MediaType: mediaType, Blob: blob.Bytes(), PlainDigest: hash.Digest()}
}

// proc is the daemon's directory in /proc.
func (n *node) proc() string { return fmt.Sprintf("/proc/%d", n.cmd.Process.Pid) }

// memory is a number of bytes of the daemon's proc_pid_status(5).
func (n *node) memory(key string) int64 {
	n.t.Helper()
	data, err := os.ReadFile(n.proc() + "/status")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, key); ok {
			var kib int64
			if _, err := fmt.Sscanf(value, "%d kB", &kib); err != nil {
				n.t.Fatalf("%s%s: %v", key, value, err)
			}
			return kib << 10
		}
	}
	n.t.Fatalf("no %s", key)
	return 0
}
