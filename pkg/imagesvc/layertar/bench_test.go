package layertar

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"criserver/pkg/imagesvc/unpack"
)

// bigLayer is a gzip layer of 7,000 files of up to 28 kB, 23 in a directory: 100 MB.
func bigLayer(b *testing.B) (blob []byte, size int64) {
	random := rand.New(rand.NewPCG(1, 2))
	var entries []entry
	for d := range 7000/23 + 1 {
		name := fmt.Sprintf("usr/lib/python/package%02d/module%02d", d/20, d)
		entries = append(entries, dir(name))
		for f := range min(23, 7000-d*23) {
			content := make([]byte, random.IntN(28_000))
			for i := range content {
				content[i] = byte('a' + random.IntN(16))
			}
			entries = append(entries, file(fmt.Sprintf("%s/file%02d.py", name, f), string(content)))
		}
	}
	data := makeTar(b, entries...)
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes(), int64(len(data))
}

// cpu is the processor time of this process so far, in nanoseconds.
func cpu(b *testing.B) int64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

// BenchmarkUnpack compares unpacking a layer with and without capturing its tar.
func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	blob, size := bigLayer(b)
	for name, capture := range map[string]bool{"plain": false, "captured": true} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			var meta bytes.Buffer
			var used int64
			for b.Loop() {
				root, before := b.TempDir(), cpu(b)
				meta.Reset()
				plain, err := unpack.Decompress(context.Background(), "", bytes.NewReader(blob), unpack.Limits{})
				if err != nil {
					b.Fatal(err)
				}
				var r io.Reader = plain
				finish := func() error { return nil }
				if capture {
					r, finish = Capture(r, &meta)
				}
				if _, err := unpack.Apply(b.Context(), root, r, unpack.Limits{}); err != nil {
					b.Fatal(err)
				}
				if err := finish(); err != nil {
					b.Fatal(err)
				}
				used += cpu(b) - before
				b.StopTimer()
				if err := os.RemoveAll(root); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(used)/float64(b.N)/1e6, "cpu-ms/op")
			b.ReportMetric(float64(meta.Len()), "metadata-bytes")
		})
	}
}

func BenchmarkRebuild(b *testing.B) { benchmarkRead(b, Rebuild) }

func BenchmarkVerify(b *testing.B) {
	benchmarkRead(b, func(meta io.Reader, root string, _ io.Writer) error {
		problems, err := Verify(b.Context(), meta, root)
		if len(problems) > 0 {
			b.Fatal(problems)
		}
		return err
	})
}

func benchmarkRead(b *testing.B, read func(meta io.Reader, root string, w io.Writer) error) {
	blob, size := bigLayer(b)
	plain, err := unpack.Decompress(context.Background(), "", bytes.NewReader(blob), unpack.Limits{})
	if err != nil {
		b.Fatal(err)
	}
	data, err := io.ReadAll(plain)
	if err != nil {
		b.Fatal(err)
	}
	root, meta := unpacked(b, data)
	b.SetBytes(size)
	for b.Loop() {
		if err := read(bytes.NewReader(meta), root, io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
