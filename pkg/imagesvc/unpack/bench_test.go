package unpack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

// smallFiles is a tar like that of an interpreter's library: files of up to 28 kB, 23 in a directory.
func smallFiles(tb testing.TB, files int, seed uint64) []byte {
	random := rand.New(rand.NewPCG(1, seed))
	var entries []entry
	for d := range (files + 22) / 23 {
		name := fmt.Sprintf("usr/lib/python/layer%02d/package%02d/module%02d", seed, d/20, d)
		entries = append(entries, dir(name))
		for f := range min(23, files-d*23) {
			content := make([]byte, random.IntN(28_000))
			for i := range content {
				content[i] = byte('a' + random.IntN(16))
			}
			entries = append(entries, file(fmt.Sprintf("%s/file%02d.py", name, f), string(content)))
		}
	}
	return makeTar(tb, entries...)
}

// noise is a tar of one file that no compression makes smaller.
func noise(tb testing.TB, size int) []byte {
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(content)
	return makeTar(tb, dir("data"), file("data/noise", string(content)))
}

// pull unpacks blobs as a pull does, as many at a time as the service's default.
func pull(b *testing.B, blobs [][]byte, parallel int) {
	needRoot(b)
	var size int64
	for _, blob := range blobs {
		n, err := decompressedSize(blob)
		if err != nil {
			b.Fatal(err)
		}
		size += n
	}
	b.SetBytes(size)
	for b.Loop() {
		root := b.TempDir()
		var group errgroup.Group
		group.SetLimit(parallel)
		for i, blob := range blobs {
			group.Go(func() error {
				dir := filepath.Join(root, strconv.Itoa(i))
				if err := os.Mkdir(dir, 0o755); err != nil {
					return err
				}
				r, err := Decompress(context.Background(), "", bytes.NewReader(blob), Limits{})
				if err != nil {
					return err
				}
				defer r.Close()
				_, err = Apply(b.Context(), dir, r, Limits{})
				return err
			})
		}
		if err := group.Wait(); err != nil {
			b.Fatal(err)
		}
		discard(b, root)
	}
}

// discard keeps the disk's work on one tree out of the time of the next.
func discard(b *testing.B, root string) {
	b.StopTimer()
	defer b.StartTimer()
	if err := os.RemoveAll(root); err != nil {
		b.Fatal(err)
	}
}

func decompressedSize(blob []byte) (int64, error) {
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return 0, err
	}
	return io.Copy(io.Discard, r)
}

// BenchmarkPull unpacks an image of 7,000 files in ten layers, of 100 MB in all, and one of 64 MB of noise.
func BenchmarkPull(b *testing.B) {
	var layers [][]byte
	for i := range uint64(10) {
		layers = append(layers, gzipped(b, smallFiles(b, 700, i)))
	}
	one := [][]byte{gzipped(b, smallFiles(b, 7000, 0))}
	big := [][]byte{gzipped(b, noise(b, 64<<20))}
	b.Run("ten layers/serial", func(b *testing.B) { pull(b, layers, 1) })
	b.Run("ten layers/parallel", func(b *testing.B) { pull(b, layers, 3) })
	b.Run("one layer", func(b *testing.B) { pull(b, one, 1) })
	b.Run("noise", func(b *testing.B) { pull(b, big, 1) })
}

func BenchmarkApply(b *testing.B) {
	needRoot(b)
	data := smallFiles(b, 7000, 0)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		root := b.TempDir()
		if _, err := Apply(b.Context(), root, bytes.NewReader(data), Limits{}); err != nil {
			b.Fatal(err)
		}
		discard(b, root)
	}
}

func BenchmarkDecompress(b *testing.B) {
	data := smallFiles(b, 7000, 0)
	for name, blob := range map[string][]byte{"gzip": gzipped(b, data), "zstd": zstded(b, data)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r, err := Decompress(context.Background(), "", bytes.NewReader(blob), Limits{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
