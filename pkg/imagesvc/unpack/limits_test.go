package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"criserver/pkg/imagesvc/unpack/tartest"
	"criserver/pkg/snapshot"
)

func TestApplyLimits(t *testing.T) {
	needRoot(t)
	const (
		size  = "image.max_layer_size"
		files = "image.max_layer_files"
	)
	three := makeTar(t, dir("d"), file("d/a", "1"), file("d/b", strings.Repeat("x", 10_000)))
	implied := makeTar(t, file("a/b/c", "1"))
	for name, test := range map[string]struct {
		data   []byte
		limits Limits
		names  string // of the setting in the error; "" if the layer is within the limits
	}{
		"no limits":                 {three, Limits{}, ""},
		"just enough":               {three, Limits{Bytes: int64(len(three)), Entries: 3}, ""},
		"one byte more":             {three, Limits{Bytes: int64(len(three)) - 1}, size},
		"one entry more":            {three, Limits{Entries: 2}, files},
		"implied, just enough":      {implied, Limits{Entries: 3}, ""},
		"implied, one more":         {implied, Limits{Entries: 2}, files},
		"zeros after the end":       {append(three[:len(three):len(three)], make([]byte, 1<<20)...), Limits{Bytes: 1 << 20}, size},
		"header of 8 GiB, no data":  {block("f", tar.TypeReg, 8<<30-1, nil), Limits{Bytes: 1 << 20}, size},
		"sparse file of 10 GiB":     {sparsePAX("f", 100, 10<<30), Limits{Bytes: 1 << 20}, size},
		"sparse files, more in all": {append(sparsePAX("f", 100, 600<<10), sparsePAX("g", 100, 600<<10)...), Limits{Bytes: 1 << 20}, size},
		"device and size":           {block("f", tar.TypeFifo, 8<<30-1, nil), Limits{Bytes: 1 << 20}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			_, err := Apply(t.Context(), root, bytes.NewReader(test.data), test.limits)
			switch {
			case test.names == "" && err != nil:
				t.Errorf("error %v", err)
			case test.names != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.names)):
				t.Errorf("error %v, want %v naming %s", err, ErrInvalid, test.names)
			}
		})
	}
}

// zeros is a tar of files of zeros, as long as wanted.
func zeros(t *testing.T, files int, size int64) []byte {
	t.Helper()
	pr, pw := io.Pipe()
	go func() {
		w := tar.NewWriter(pw)
		var err error
		for i := 0; i < files && err == nil; i++ {
			if err = w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Size: size, Mode: 0o644}); err == nil {
				_, err = io.CopyN(w, zeroReader{}, size)
			}
		}
		pw.CloseWithError(errors.Join(err, w.Close()))
	}()
	blob, err := gzipStream(pr)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A bomb is noticed when the limit is passed, not when all of it has been read, and takes no more than the limit.
func TestApplyBombs(t *testing.T) {
	needRoot(t)
	const limit = 16 << 20
	for name, blob := range map[string][]byte{
		"zeros in files":   zeros(t, 256, 1<<20),
		"sparse of 10 GiB": gzipped(t, append(sparseGNU("bomb", 100, 10<<30-1), sparsePAX("bomb", 100, 10<<30)...)),
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Decompress(context.Background(), "", bytes.NewReader(blob), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			counted := &trailing{Reader: r}
			root := t.TempDir()
			_, err = Apply(t.Context(), root, counted, Limits{Bytes: limit})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "image.max_layer_size") {
				t.Errorf("error %v, want %v naming image.max_layer_size", err, ErrInvalid)
			}
			if counted.read > limit+1 {
				t.Errorf("%d bytes were unpacked, the limit is %d", counted.read, limit)
			}
			usage, err := snapshot.DiskUsage(t.Context(), root)
			if err != nil || usage.Bytes > limit+1<<20 {
				t.Errorf("takes %d bytes on disk, %v", usage.Bytes, err)
			}
		})
	}
}

// What the kernel refuses is the layer's fault.
func TestApplyImpossibleNames(t *testing.T) {
	needRoot(t)
	for name, entries := range map[string][]entry{
		"component too long":   {file(strings.Repeat("n", 256), "1")},
		"path too long":        {file(strings.Repeat(strings.Repeat("n", 200)+"/", 25)+"f", "1")},
		"name of a MiB":        {file(strings.Repeat("n/", 400_000)+"f", "1")},
		"link to a MiB":        {symlink("l", strings.Repeat("n/", 400_000))},
		"too deep":             {file(strings.Repeat("d/", 256)+"f", "1")},
		"file as a directory":  {file("a", "1"), file("a/b", "2")},
		"behind too many dirs": {symlink("l", strings.Repeat("d/", 2000)), file("l/l/l/l/l/l/l/l/f", "1")},
		"unknown type":         {entry{Header: tar.Header{Typeflag: '7', Name: "c"}}},
	} {
		guard := newGuard(t)
		_, err := Apply(t.Context(), guard.root, bytes.NewReader(makeTar(t, entries...)), Limits{})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v, want %v", name, err, ErrInvalid)
		}
		guard.check(t)
	}
}

// What an inode cannot have is refused: half of it would be another file than the tar says.
func TestApplyImpossibleAttributes(t *testing.T) {
	needRoot(t)
	owned := func(uid, gid int) []byte {
		f := file("f", "1")
		f.Uid, f.Gid, f.Format = uid, gid, tar.FormatGNU
		return makeTar(t, f)
	}
	node := func(major, minor int64) []byte {
		d := tartest.Device("f", tar.TypeBlock, major, minor)
		d.Format = tar.FormatGNU
		return makeTar(t, d)
	}
	base256 := func(offset int) func([]byte) {
		return func(b []byte) { copy(b[offset:], "\xff\xff\xff\xff\xff\xff\xff\xfe") }
	}
	for name, data := range map[string][]byte{
		"user -1":            owned(-1, 0),
		"group -1":           owned(0, -1),
		"user 2^32-1":        owned(1<<32-1, 0),
		"group 2^32":         owned(0, 1<<32),
		"major 4096":         node(4096, 0),
		"minor 2^20":         node(0, 1<<20),
		"negative major":     block("f", tar.TypeChar, 0, base256(329)),
		"negative minor":     block("f", tar.TypeChar, 0, base256(337)),
		"major of 2^56":      block("f", tar.TypeChar, 0, func(b []byte) { copy(b[329:], "\x80\x00\x00\x01\x00\x00\x00\x00") }),
		"negative size":      block("f", tar.TypeReg, 0, func(b []byte) { copy(b[124:], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe") }),
		"negative PAX size":  append(paxRecords("size=-5"), block("f", tar.TypeReg, 0, nil)...),
		"negative realsize":  sparsePAX("f", 0, -5),
		"time is no number":  append(paxRecords("mtime=late"), block("f", tar.TypeReg, 0, nil)...),
		"sparse, own number": append(paxRecords("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=x"), block("f", tar.TypeReg, 0, nil)...),
	} {
		root := t.TempDir()
		if _, err := Apply(t.Context(), root, bytes.NewReader(data), Limits{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v, want %v", name, err, ErrInvalid)
		}
		if _, err := os.Lstat(filepath.Join(root, "f")); err == nil {
			t.Errorf("%s: it was unpacked", name)
		}
	}
}

// The reader is the caller's again when Apply returns: the race detector tells.
func TestApplyGivesTheReaderBack(t *testing.T) {
	needRoot(t)
	r := &trailing{Reader: io.MultiReader(bytes.NewReader(makeTar(t, file("../x", "1"))), io.LimitReader(zeroReader{}, 8<<20))}
	if _, err := Apply(t.Context(), t.TempDir(), r, Limits{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v, want %v", err, ErrInvalid)
	}
	before := r.read
	if _, err := r.Read(make([]byte, 10)); err != nil || r.read != before+10 {
		t.Errorf("read %d after %d bytes, %v", r.read, before, err)
	}
}

func TestApplyDiskError(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	_, err := Apply(t.Context(), root, bytes.NewReader(makeTar(t, file("f", strings.Repeat("x", 1<<20)))), Limits{})
	if !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrInvalid) {
		t.Errorf("error %v, want ENOSPC", err)
	}
	if _, err := os.Lstat(root + "/f"); err != nil {
		t.Error(err)
	}
}
