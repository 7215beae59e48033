package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestApplyRefuses(t *testing.T) {
	loop := []entry{symlink("l0", "l1"), symlink("l1", "l0"), file("l0/f", "x")}
	for name, test := range map[string]struct {
		entries []entry
		culprit string
	}{
		"dotdot":                       {[]entry{file("../../etc/passwd", "x")}, "../../etc/passwd"},
		"dotdot in the middle":         {[]entry{file("a/../../outside", "x")}, "../outside"},
		"dotdot directory":             {[]entry{dir("..")}, ".."},
		"dotdot symlink":               {[]entry{symlink("../outside", "/etc")}, "../outside"},
		"dotdot whiteout":              {[]entry{file("../.wh.outside", "")}, "../.wh.outside"},
		"dotdot opaque":                {[]entry{file("../.wh..wh..opq", "")}, "../.wh..wh..opq"},
		"file through symlink":         {[]entry{symlink("esc", "../"), file("esc/outside", "x")}, "esc/outside"},
		"file through deep symlink":    {[]entry{symlink("a/b/esc", "../../../.."), file("a/b/esc/outside", "x")}, "a/b/esc/outside"},
		"file through absolute climb":  {[]entry{symlink("esc", "/../.."), file("esc/outside", "x")}, "esc/outside"},
		"file through two symlinks":    {[]entry{symlink("one", "a/.."), symlink("two", "one/.."), file("two/outside", "x")}, "two/outside"},
		"directory through symlink":    {[]entry{symlink("esc", ".."), dir("esc/outside")}, "esc/outside"},
		"file through a link's link":   {[]entry{symlink("esc", ".."), hardlink("same", "esc"), file("same/outside", "x")}, "same/outside"},
		"whiteout through symlink":     {[]entry{symlink("esc", ".."), file("esc/.wh.outside", "")}, "esc/.wh.outside"},
		"symlink loop":                 {loop, "l0/f"},
		"symlink to a symlink's root":  {[]entry{symlink("tmp", "/"), file("tmp/../outside/../../x", "x")}, "../x"},
		"file through a link to root":  {[]entry{symlink("tmp", "/"), file("tmp/f", "x")}, "tmp/f"},
		"dir through a link to root":   {[]entry{symlink("a/tmp", "//."), dir("a/tmp/f")}, "a/tmp/f"},
		"hard link out":                {[]entry{hardlink("h", "../outside")}, "h"},
		"hard link out, absolute":      {[]entry{hardlink("h", "/../../etc/passwd")}, "h"},
		"hard link to the parent":      {[]entry{hardlink("h", "..")}, "h"},
		"hard link through symlink":    {[]entry{symlink("esc", ".."), hardlink("h", "esc/outside")}, "h"},
		"whiteout without name":        {[]entry{file("a/.wh.", "")}, "a/.wh."},
		"whiteout of its directory":    {[]entry{file("a/.wh..", "")}, "a/.wh.."},
		"whiteout of parent directory": {[]entry{file("a/.wh...", "")}, "a/.wh..."},
		"whiteout as a directory":      {[]entry{file(".wh.a/b", "")}, ".wh.a/b"},
	} {
		t.Run(name, func(t *testing.T) {
			needRoot(t)
			guard := newGuard(t)
			_, err := Apply(t.Context(), guard.root, bytes.NewReader(makeTar(t, test.entries...)), Limits{})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("%q", test.culprit)) {
				t.Errorf("error %v, want %v naming %q", err, ErrInvalid, test.culprit)
			}
			guard.check(t)
		})
	}
}

// What tools make of absolute names: they count from the root of the image, as a chroot sees them.
func TestApplyConfines(t *testing.T) {
	needRoot(t)
	guard := newGuard(t)
	victim := filepath.Join(guard.parent, "outside")
	data := makeTar(t, file(victim, "x"), file("/../../etc/passwd", "x"), symlink("abs", guard.parent), file("abs/file", "x"))
	if _, err := Apply(t.Context(), guard.root, bytes.NewReader(data), Limits{}); err != nil {
		t.Fatal(err)
	}
	guard.check(t)
	wantContent(t, guard.root, victim, "x")
	wantContent(t, guard.root, "etc/passwd", "x")
	wantContent(t, guard.root, filepath.Join(guard.parent, "file"), "x")
}

// guard notices changes beside the directory that a layer is unpacked to.
type guard struct {
	parent, root string
	before       unix.Stat_t
}

func newGuard(t testing.TB) *guard {
	t.Helper()
	g := &guard{parent: t.TempDir()}
	g.root = filepath.Join(g.parent, "root")
	err := errors.Join(os.Mkdir(g.root, 0o755), os.WriteFile(filepath.Join(g.parent, "outside"), []byte("untouched"), 0o600))
	if err == nil {
		err = unix.Lstat(filepath.Join(g.parent, "outside"), &g.before)
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *guard) check(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir(g.parent)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if err != nil || !slices.Equal(names, []string{"outside", "root"}) {
		t.Errorf("beside the root: %q, %v", names, err)
	}
	var after unix.Stat_t
	err = unix.Lstat(filepath.Join(g.parent, "outside"), &after)
	if err != nil || after.Ino != g.before.Ino || after.Ctim != g.before.Ctim || after.Nlink != 1 {
		t.Errorf("file beside the root was changed (%v)", err)
	}
}

func TestApplyNotATar(t *testing.T) {
	needRoot(t)
	_, err := Apply(t.Context(), t.TempDir(), strings.NewReader(strings.Repeat("no tar at all ", 100)), Limits{})
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v, want %v", err, ErrInvalid)
	}
	whole := makeTar(t, file("a", "1"), file("b", strings.Repeat("x", 4000)))
	for _, n := range []int{100, 512, 1024 + 100, 1536 + 1000} {
		if _, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(whole[:n]), Limits{}); err == nil {
			t.Errorf("tar cut after %d bytes is unpacked without error", n)
		}
	}
}

// block writes a ustar header by hand, for what archive/tar's writer refuses.
func block(name string, kind byte, size int64, edit func(b []byte)) []byte {
	b := make([]byte, 512)
	copy(b[0:100], name)
	copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", 0o644, 0, 0, size, 0))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	if edit != nil {
		edit(b)
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func padded(data string) []byte {
	return append([]byte(data), make([]byte, (512-len(data)%512)%512)...)
}

// sparseGNU is an old GNU sparse file: "data" at the offset, holes around it.
func sparseGNU(name string, offset, size int64) []byte {
	head := block(name, tar.TypeGNUSparse, 4, func(b []byte) {
		copy(b[257:], "ustar  \x00")
		copy(b[386:], fmt.Sprintf("%011o\x00%011o\x00", offset, 4))
		copy(b[483:], fmt.Sprintf("%011o\x00", size))
	})
	return append(head, padded("data")...)
}

// paxRecords is the extended header of the entry that follows.
func paxRecords(records ...string) []byte {
	var out strings.Builder
	for _, kv := range records {
		n := len(kv) + 2
		for len(fmt.Sprint(n))+len(kv)+2 != n {
			n++
		}
		fmt.Fprintf(&out, "%d %s\n", n, kv)
	}
	return append(block("pax", tar.TypeXHeader, int64(out.Len()), nil), padded(out.String())...)
}

// sparsePAX is the same in PAX format 1.0.
func sparsePAX(name string, offset, size int64) []byte {
	out := paxRecords("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name="+name, fmt.Sprint("GNU.sparse.realsize=", size))
	sparseMap := padded(fmt.Sprintf("1\n%d\n4\n", offset))
	out = append(out, block("ignored", tar.TypeReg, int64(len(sparseMap)+4), nil)...)
	return append(append(out, sparseMap...), padded("data")...)
}

func TestApplySparse(t *testing.T) {
	needRoot(t)
	const offset, size = 100_000, 200_000
	want := make([]byte, size)
	copy(want[offset:], "data")
	for name, make := range map[string]func(string, int64, int64) []byte{"gnu": sparseGNU, "pax": sparsePAX} {
		root := t.TempDir()
		data := append(make("dir/f", offset, size), makeTar(t, file("after", "1"))...)
		if _, err := Apply(t.Context(), root, bytes.NewReader(data), Limits{}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantContent(t, root, "dir/f", string(want))
		wantContent(t, root, "after", "1")
		root = t.TempDir()
		_, err := Apply(t.Context(), root, bytes.NewReader(make("bomb", offset, 7<<30)), Limits{})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: sparse file of 7 GiB: %v, want %v", name, err, ErrInvalid)
		}
	}
}

// FuzzApply holds Apply to its word: nothing outside the directory changes, and limits end it, whatever the tar.
func FuzzApply(f *testing.F) {
	f.Add(makeTar(f, dir("a"), file("a/f", "1"), symlink("a/l", "../.."), hardlink("h", "a/f"), file("a/.wh.x", "")))
	f.Add(makeTar(f, symlink("esc", "../outside"), file("esc", "x"), hardlink("h", "esc")))
	f.Add(makeTar(f, symlink("tmp", "/"), file("tmp/outside", "x"), hardlink("h", "tmp/../outside")))
	f.Add(makeTar(f, file("../outside", "x")))
	f.Add(makeTar(f, file(".wh.d", ""), file("d/x", "1"), symlink("d/y", "/"), file("d/y/../outside", "")))
	f.Add(makeTar(f, file(strings.Repeat("d/", 20)+"f", "x")))
	f.Add(sparseGNU("s", 10, 2000))
	f.Add(sparsePAX("s", 10, 2000))
	f.Add(sparsePAX("s", 10, 10<<30))
	f.Add(makeTar(f, withXattr("x", "user.", "1"), hardlink("h", "none"), symlink("l", "x")))
	f.Add(manifold(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		needRoot(t)
		guard := newGuard(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		// Whether it succeeds is not the point, but who is blamed: nothing is wrong with the reader and the disk.
		_, err := Apply(ctx, guard.root, bytes.NewReader(data), Limits{Bytes: 1 << 20, Entries: 1000})
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("error %v, want %v", err, ErrInvalid)
		}
		if err != nil && (len(err.Error()) > 4000 || strings.Contains(err.Error(), guard.parent)) {
			t.Errorf("error of %d bytes, or with the place of the layer: %.300v", len(err.Error()), err)
		}
		if err := ctx.Err(); err != nil {
			t.Error(err)
		}
		guard.check(t)
	})
}
