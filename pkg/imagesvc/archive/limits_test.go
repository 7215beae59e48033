package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
)

func TestReadLimits(t *testing.T) {
	data := write(t, archive.OCI, source(testImage(t, ocispec.MediaTypeImageLayer, "one"), busybox))
	r := tar.NewReader(bytes.NewReader(data))
	entries := 0
	for _, err := r.Next(); err == nil; _, err = r.Next() {
		entries++
	}
	exact := archive.Limits{Bytes: int64(len(data)), Entries: entries}
	if _, err := archive.Read(t.Context(), bytes.NewReader(data), t.TempDir(), exact); err != nil {
		t.Errorf("what is allowed exactly: %v", err)
	}
	// An archive of few bytes with a terabyte of zeros in it: compressed, and as the hole of a sparse file.
	bomb := makeTar(t, entry{name: "zeros", data: make([]byte, 8<<20)})
	for what, tc := range map[string]struct {
		data   []byte
		limits archive.Limits
		want   string
	}{
		"bytes":   {data, archive.Limits{Bytes: exact.Bytes - 1, Entries: 100}, "that are allowed"},
		"entries": {data, archive.Limits{Bytes: exact.Bytes, Entries: entries - 1}, "entries that are allowed"},
		"none":    {data, archive.Limits{}, "more than the 0 bytes"},
		"gzip":    {gzipped(t, bomb), archive.Limits{Bytes: 1 << 20, Entries: 100}, "that are allowed"},
		"zstd":    {zstandard(t, bomb), archive.Limits{Bytes: 1 << 20, Entries: 100}, "that are allowed"},
		"sparse":  {sparse(t), archive.Limits{Bytes: 1 << 20, Entries: 100}, "that are allowed"},
	} {
		dir := t.TempDir()
		_, err := archive.Read(t.Context(), bytes.NewReader(tc.data), dir, tc.limits)
		if !errors.Is(err, archive.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an ErrInvalid with %q", what, err, tc.want)
		}
		if size := sizeOf(t, dir); size > tc.limits.Bytes {
			t.Errorf("%s: %d bytes were kept", what, size)
		}
	}
}

// sparse is a tar of a file with a hole of a terabyte, in GNU's PAX form 1.0.
func sparse(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	body := make([]byte, 512)
	copy(body, "1\n1099511627776\n0\n")
	// The writer makes no sparse files: these records have names of the same length, to be changed after.
	hdr := &tar.Header{Name: "GNUSparseFile.0/hole", Typeflag: tar.TypeReg, Size: int64(len(body)), Mode: 0o644, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.name": "hole", "XXX.sparse.realsize": "1099511627776"}}
	if err := w.WriteHeader(hdr); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := bytes.ReplaceAll(buf.Bytes(), []byte("XXX.sparse"), []byte("GNU.sparse"))
	hole, err := tar.NewReader(bytes.NewReader(data)).Next()
	if err != nil || hole.Size != 1<<40 {
		t.Fatalf("no sparse file was made: %+v, %v", hole, err)
	}
	return data
}

func sizeOf(t testing.TB, dir string) int64 {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	return sum
}
