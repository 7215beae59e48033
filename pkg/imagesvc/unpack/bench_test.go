package unpack

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// smallFiles is a tar like that of an interpreter's library: 7,000 files of 0 to 12 kB in 300 directories.
func smallFiles(tb testing.TB) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	var entries []entry
	for d := range 300 {
		name := fmt.Sprintf("usr/lib/python/package%02d/module%02d", d/20, d)
		entries = append(entries, dir(name))
		for f := range 7000 / 300 {
			content := make([]byte, random.IntN(12_000))
			for i := range content {
				content[i] = byte('a' + random.IntN(16))
			}
			entries = append(entries, file(fmt.Sprintf("%s/file%02d.py", name, f), string(content)))
		}
	}
	return makeTar(tb, entries...)
}

func BenchmarkApply(b *testing.B) {
	needRoot(b)
	data := smallFiles(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Apply(b.Context(), b.TempDir(), bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecompress(b *testing.B) {
	data := smallFiles(b)
	for name, blob := range map[string][]byte{"gzip": gzipped(b, data), "zstd": zstded(b, data)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r, err := Decompress("", bytes.NewReader(blob))
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
