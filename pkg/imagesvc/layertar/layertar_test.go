package layertar

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/imagesvc/unpack/tartest"
	"criserver/pkg/imagesvc/verify"
)

type entry = tartest.Entry

var (
	dir, file, symlink, hardlink, device = tartest.Dir, tartest.File, tartest.Symlink, tartest.Hardlink, tartest.Device

	makeTar, needRoot = tartest.Make, tartest.NeedRoot
)

// captured unpacks a tar while it is captured, as a pull does.
func captured(t testing.TB, root string, data []byte) (meta []byte, captureErr, applyErr error) {
	t.Helper()
	var buf bytes.Buffer
	r, finish := Capture(bytes.NewReader(data), &buf)
	_, applyErr = unpack.Apply(t.Context(), root, r, unpack.Limits{})
	captureErr = finish()
	return buf.Bytes(), captureErr, applyErr
}

// unpacked is the directory and the metadata of a tar that is exact.
func unpacked(t testing.TB, data []byte) (root string, meta []byte) {
	t.Helper()
	needRoot(t)
	root = t.TempDir()
	meta, captureErr, applyErr := captured(t, root, data)
	if err := errors.Join(captureErr, applyErr); err != nil {
		t.Fatal(err)
	}
	return root, meta
}

// everything is a tar of all that a layer can have.
func everything(t testing.TB) []byte {
	t.Helper()
	owned := file("usr/bin/tool", "#!/bin/sh\n")
	owned.Uid, owned.Gid, owned.Mode, owned.Format = 1000, 3000000, 0o6755, tar.FormatPAX
	owned.ModTime = time.Unix(1700000000, 123456789)
	owned.PAXRecords = map[string]string{
		"SCHILY.xattr.user.note": "a=b",
		"SCHILY.xattr.security.capability": string([]byte{
			1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
		"SCHILY.xattr.trusted.overlay.redirect": "/etc", // which is not unpacked
	}
	old := file("old", "1")
	old.Format, old.ModTime = tar.FormatPAX, time.Unix(-5, 0)
	long := strings.Repeat(strings.Repeat("n", 150)+"/", 4) + "file"
	gnu := file("gnu/"+long, "long")
	gnu.Format = tar.FormatGNU
	tmp := dir("tmp/")
	tmp.Mode = 0o1777
	return makeTar(t, dir("./"), dir("usr"), dir("usr/bin"), owned, hardlink("usr/bin/same", "usr/bin/tool"),
		hardlink("./usr/bin/dot", "./usr/bin/tool"), symlink("bin", "usr/bin"), hardlink("bin2", "bin"), old, tmp,
		file("pax/"+long, strings.Repeat("x", 300_000)), gnu, file("implied/dir/empty", ""), file("latin/\xe4\xff", "umlaut"),
		file("/abs/file", "absolute"), device("dev/null", tar.TypeChar, 1, 3), device("dev/sda", tar.TypeBlock, 259, 300),
		device("run/fifo", tar.TypeFifo, 0, 0), file("etc/.wh.gone", ""), file(".wh.top", ""), file("opq/.wh..wh..opq", ""),
		file("opq/new", "2"), file(".wh.both", ""), dir("both"), file("both/x", "3"), file("f", "4"), file(".wh.f", ""),
		file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"))
}

// tarProgram is what GNU tar makes of a tree, in one of its formats.
func tarProgram(t testing.TB, format string) []byte {
	t.Helper()
	program, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("no tar program")
	}
	root := t.TempDir()
	err = errors.Join(
		os.MkdirAll(filepath.Join(root, "a/b"), 0o750),
		os.WriteFile(filepath.Join(root, "a/b/file"), bytes.Repeat([]byte("text\n"), 1000), 0o640),
		os.WriteFile(filepath.Join(root, "a/"+strings.Repeat("long", 22)), []byte("x"), 0o600),
		os.Link(filepath.Join(root, "a/b/file"), filepath.Join(root, "a/link")),
		os.Symlink("b/file", filepath.Join(root, "a/sym")),
	)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, "-c", "--format="+format, "-C", root, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func exactTars(t testing.TB) map[string][]byte {
	all := everything(t)
	global := entry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "a commit"}}}
	return map[string][]byte{
		"everything":       all,
		"padded":           append(all[:len(all):len(all)], make([]byte, 300_000)...),
		"without its end":  all[:len(all)-1024],
		"half of its end":  all[:len(all)-512],
		"garbage after it": append(all[:len(all):len(all)], "garbage"...),
		"empty":            makeTar(t),
		"nothing":          {},
		"global header":    makeTar(t, global, file("f", "1")),
		"gnu tar, gnu":     tarProgram(t, "gnu"),
		"gnu tar, pax":     tarProgram(t, "pax"),
		"gnu tar, ustar":   tarProgram(t, "ustar"),
		"gnu tar, v7":      tarProgram(t, "v7"),
		"1 MiB and more":   makeTar(t, file("big", strings.Repeat("0123456789abcdef", 200_000)), file("after", "1")),
	}
}

func TestRebuild(t *testing.T) {
	for name, data := range exactTars(t) {
		t.Run(name, func(t *testing.T) {
			root, meta := unpacked(t, data)
			var got bytes.Buffer
			if err := Rebuild(bytes.NewReader(meta), root, &got); err != nil {
				t.Fatal(err)
			}
			r := verify.NewReader(&got, digest.FromBytes(data), int64(len(data)))
			if err := r.Drain(); err != nil {
				t.Error(err)
			}
			problems, err := Verify(t.Context(), bytes.NewReader(meta), root)
			if err != nil || len(problems) > 0 {
				t.Errorf("verify: %v, %v", problems, err)
			}
		})
	}
}

func TestCaptureNotExact(t *testing.T) {
	needRoot(t)
	for name, test := range map[string]struct {
		data   []byte
		reason string
	}{
		"a name twice":              {makeTar(t, file("a", "1"), file("a", "2")), `"a"`},
		"the root twice":            {makeTar(t, dir("./"), dir("./")), `"./"`},
		"a directory twice":         {makeTar(t, dir("d"), dir("d/")), `"d/"`},
		"with a dot":                {makeTar(t, file("a", "1"), file("./a", "2")), `"./a"`},
		"absolute":                  {makeTar(t, file("a", "1"), file("/a", "2")), `"/a"`},
		"with two slashes":          {makeTar(t, file("d/a", "1"), file("d//a", "2")), `"d//a"`},
		"with dots inside":          {makeTar(t, file("a", "1"), file("x/../a", "2")), `"x/../a"`},
		"behind a link":             {makeTar(t, dir("d"), symlink("l", "d"), file("l/a", "1")), `"l/a"`},
		"behind a link's hard link": {makeTar(t, dir("d"), symlink("l", "d"), hardlink("h", "l"), file("h/a", "1")), `"h/a"`},
		"hard link behind a link":   {makeTar(t, file("d/a", "1"), symlink("l", "d"), hardlink("h", "l/a")), `"h"`},
		"directory replaced":        {makeTar(t, file("d/a", "1"), file("d", "2")), `"d"`},
		"directory to a link":       {makeTar(t, file("d/a", "1"), symlink("d", "e")), `"d"`},
		"whiteout with content":     {makeTar(t, file(".wh.a", "1")), `".wh.a"`},
		"cut in the padding":        {makeTar(t, file("a", "1"))[:700], "end"},
		"content of aufs":           {makeTar(t, file(".wh..wh.aufs", "1")), `".wh..wh.aufs"`},
		"sparse, old GNU form":      {sparseGNU(), `"sparse"`},
		"sparse, PAX form":          {sparsePAX(t), `"sparse"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err, applyErr := captured(t, t.TempDir(), test.data)
			if applyErr != nil {
				t.Errorf("unpacking was disturbed: %v", applyErr)
			}
			if !errors.Is(err, ErrNotExact) || !strings.Contains(fmt.Sprint(err), test.reason) {
				t.Errorf("error %v, want %v of %s", err, ErrNotExact, test.reason)
			}
		})
	}
}

// sparseGNU is an old GNU sparse file of 10 GiB, which nobody must write out to find out about it.
func sparseGNU() []byte {
	b := make([]byte, 512)
	copy(b, "sparse")
	copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", 0o644, 0, 0, 4, 0))
	b[156] = tar.TypeGNUSparse
	copy(b[257:], "ustar  \x00")
	copy(b[386:], fmt.Sprintf("%011o\x00%011o\x00", 100, 4))
	copy(b[483:], fmt.Sprintf("%011o\x00", 200_000))
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(append(b, "data"...), make([]byte, 508+1024)...)
}

// sparsePAX is the same in PAX format 1.0, whose records archive/tar does not write: they are put in place of others.
func sparsePAX(t *testing.T) []byte {
	t.Helper()
	f := file("ignored", "1\n100\n4\n"+strings.Repeat("\x00", 512-8)+"data")
	f.PAXRecords = map[string]string{
		"GXU.sparse.major": "1", "GXU.sparse.minor": "0", "GXU.sparse.name": "sparse", "GXU.sparse.realsize": "200000"}
	return bytes.ReplaceAll(makeTar(t, f), []byte("GXU.sparse"), []byte("GNU.sparse"))
}

// What the tar's headers claim and repeat does not grow in memory.
func TestCaptureHugeHeaders(t *testing.T) {
	const huge = 256 << 20
	header := func(flag byte, size int64) []byte {
		b := sparseGNU()[:512]
		copy(b[124:], fmt.Sprintf("%011o\x00", size))
		b[156] = flag
		copy(b[148:156], "        ")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		return b
	}
	record := append(header('x', 15), append([]byte("15 comment=abc\n"), make([]byte, 497)...)...)
	for name, r := range map[string]io.Reader{
		"extended header of 256 MiB":   io.MultiReader(bytes.NewReader(header('x', huge)), io.LimitReader(zeros{}, huge)),
		"GNU name of 256 MiB":          io.MultiReader(bytes.NewReader(header('L', huge)), io.LimitReader(zeros{}, huge)),
		"extended headers, one by one": bytes.NewReader(bytes.Repeat(record, huge/len(record))),
		"name of a MiB":                bytes.NewReader(makeTar(t, file(strings.Repeat("n/", 400_000)+"f", "1"))),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		captured, finish := Capture(r, io.Discard)
		_, err := io.Copy(io.Discard, captured)
		if finished := finish(); err != nil || !errors.Is(finished, ErrNotExact) {
			t.Errorf("%s: read: %v, finish: %v, want %v", name, err, finished, ErrNotExact)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > huge { // with a buffer that grows, the tar takes more than twice its size
			t.Errorf("%s: %d MiB were allocated", name, got>>20)
		}
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestCaptureErrors(t *testing.T) {
	data := makeTar(t, file("a", strings.Repeat("x", 3<<20)), file("b", "1"))
	full := errors.New("disk full")
	r, finish := Capture(bytes.NewReader(data), failingWriter{full})
	if n, err := io.Copy(io.Discard, r); n != int64(len(data)) || err != nil {
		t.Errorf("read %d bytes of %d, %v", n, len(data), err)
	}
	if err := finish(); !errors.Is(err, full) || errors.Is(err, ErrNotExact) {
		t.Errorf("error %v, want %v", err, full)
	}
	mismatch := errors.New("digest mismatch")
	r, finish = Capture(io.MultiReader(bytes.NewReader(data), errReader{mismatch}), io.Discard)
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, mismatch) {
		t.Errorf("read: %v, want %v", err, mismatch)
	}
	if err := finish(); !errors.Is(err, mismatch) {
		t.Errorf("error %v, want %v", err, mismatch)
	}
	r, finish = Capture(bytes.NewReader(data), io.Discard)
	if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
		t.Error(err)
	}
	if err := finish(); err == nil {
		t.Error("a tar not read to its end is captured")
	}
	if err := finish(); err == nil {
		t.Error("a tar not read to its end is captured when asked twice")
	}
	r, finish = Capture(strings.NewReader(strings.Repeat("no tar at all ", 100_000)), io.Discard)
	if n, err := io.Copy(io.Discard, r); n != 1_400_000 || err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if err := finish(); !errors.Is(err, ErrNotExact) {
		t.Errorf("error %v, want %v", err, ErrNotExact)
	}
	r, finish = Capture(io.MultiReader(bytes.NewReader(data), io.LimitReader(zeros{}, 17<<20)), io.Discard)
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	if err := finish(); !errors.Is(err, ErrNotExact) {
		t.Errorf("17 MiB after the end: error %v, want %v", err, ErrNotExact)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }
