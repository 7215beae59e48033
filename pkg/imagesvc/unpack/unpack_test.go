package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/imagesvc/unpack/tartest"
)

type entry = tartest.Entry

var (
	dir, file, symlink, hardlink = tartest.Dir, tartest.File, tartest.Symlink, tartest.Hardlink

	makeTar, needRoot, mtime = tartest.Make, tartest.NeedRoot, tartest.ModTime
)

func unpacked(t *testing.T, entries ...entry) (string, Result) {
	t.Helper()
	needRoot(t)
	root := t.TempDir()
	result, err := Apply(t.Context(), root, bytes.NewReader(makeTar(t, entries...)), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return root, result
}

func stat(t *testing.T, root, name string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Lstat(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t)
}

func wantContent(t *testing.T, root, name, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(root, name))
	if err != nil || string(got) != want {
		t.Errorf("%s: content %.40q, %v; want %.40q", name, got, err, want)
	}
}

func wantMode(t *testing.T, root, name string, want uint32) {
	t.Helper()
	if got := stat(t, root, name).Mode; got != want {
		t.Errorf("%s: mode %o, want %o", name, got, want)
	}
}

func wantWhiteout(t *testing.T, root, name string) {
	t.Helper()
	if st := stat(t, root, name); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("%s: mode %o, device %#x, want a whiteout", name, st.Mode, st.Rdev)
	}
}

func wantOpaque(t *testing.T, root, name string, want bool) {
	t.Helper()
	buf := make([]byte, 8)
	n, err := unix.Lgetxattr(filepath.Join(root, name), "trusted.overlay.opaque", buf)
	if got := err == nil && string(buf[:n]) == "y"; got != want {
		t.Errorf("%s: opaque %v (%v), want %v", name, got, err, want)
	}
}

func TestApplyKeepsAttributes(t *testing.T) {
	old := unix.Umask(0o077) // must not matter
	t.Cleanup(func() { unix.Umask(old) })
	late := time.Unix(1700000000, 123456789)
	owned := file("usr/bin/tool", "x")
	owned.Uid, owned.Gid, owned.Mode, owned.ModTime, owned.Format = 1000, 3000000, 0o6755, late, tar.FormatPAX
	tmp := dir("tmp/")
	tmp.Mode = 0o1777
	root, _ := unpacked(t, tmp, dir("usr"), dir("usr/bin"), owned, symlink("tmp/link", "/etc/passwd"),
		hardlink("usr/bin/same", "usr/bin/tool"), hardlink("usr/bin/abs", "/usr/bin/tool"))
	wantMode(t, root, "usr/bin/tool", unix.S_IFREG|0o6755)
	wantMode(t, root, "tmp", unix.S_IFDIR|0o1777)
	wantMode(t, root, "usr/bin", unix.S_IFDIR|0o755)
	st := stat(t, root, "usr/bin/tool")
	if st.Uid != 1000 || st.Gid != 3000000 || st.Nlink != 3 {
		t.Errorf("owner %d:%d, %d links; want 1000:3000000, 3", st.Uid, st.Gid, st.Nlink)
	}
	if got := time.Unix(st.Mtim.Unix()); !got.Equal(late) {
		t.Errorf("file time %v, want %v", got, late)
	}
	for _, name := range []string{"tmp", "usr/bin", "tmp/link"} { // written to after their entry
		if got := time.Unix(stat(t, root, name).Mtim.Unix()); !got.Equal(mtime) {
			t.Errorf("%s: time %v, want %v", name, got, mtime)
		}
	}
	if target, err := os.Readlink(filepath.Join(root, "tmp/link")); target != "/etc/passwd" {
		t.Errorf("link leads to %q, %v", target, err)
	}
}

func TestApplySpecialFiles(t *testing.T) {
	node := tartest.Device
	root, _ := unpacked(t, node("dev/null", tar.TypeChar, 1, 3), node("dev/big", tar.TypeBlock, 259, 300),
		node("run/fifo", tar.TypeFifo, 0, 0))
	wantMode(t, root, "dev/null", unix.S_IFCHR|0o620)
	wantMode(t, root, "dev/big", unix.S_IFBLK|0o620)
	wantMode(t, root, "run/fifo", unix.S_IFIFO|0o620)
	if st := stat(t, root, "dev/null"); st.Rdev != unix.Mkdev(1, 3) || st.Gid != 5 {
		t.Errorf("dev/null: device %#x, group %d", st.Rdev, st.Gid)
	}
	if st := stat(t, root, "dev/big"); st.Rdev != unix.Mkdev(259, 300) {
		t.Errorf("dev/big: device %#x", st.Rdev)
	}
}

func TestApplyXattrs(t *testing.T) {
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f := file("bin", "x")
	f.Uid = 7
	f.PAXRecords = map[string]string{
		"SCHILY.xattr.user.note":                "a=b",
		"SCHILY.xattr.security.capability":      capability,
		"SCHILY.xattr.trusted.overlay.redirect": "/etc",
	}
	d := dir("d")
	d.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}
	root, _ := unpacked(t, f, d, hardlink("same", "bin")) // whose chown would drop the capability
	buf := make([]byte, 64)
	for name, want := range map[string]string{"user.note": "a=b", "security.capability": capability} {
		n, err := unix.Lgetxattr(filepath.Join(root, "bin"), name, buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("%s: %q, %v", name, buf[:max(n, 0)], err)
		}
	}
	// Overlayfs's own marks are not the image's to set.
	if _, err := unix.Lgetxattr(filepath.Join(root, "bin"), "trusted.overlay.redirect", buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("trusted attribute of the tar: %v, want ENODATA", err)
	}
	wantOpaque(t, root, "d", false)
}

func TestApplyWhiteouts(t *testing.T) {
	root, result := unpacked(t,
		file("dir/.wh.gone", ""), file("dir/kept", "1"), file(".wh.top", ""),
		file("opq/new", "2"), file("opq/.wh..wh..opq", ""), file("opq/after", "3"),
		file("first/.wh..wh..opq", ""),
		file(".wh..wh..opq", ""),
		file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"),
	)
	wantWhiteout(t, root, "dir/gone")
	wantWhiteout(t, root, "top")
	for name, want := range map[string]bool{"opq": true, "first": true, ".": true, "dir": false} {
		wantOpaque(t, root, name, want)
	}
	wantContent(t, root, "opq/new", "2")
	wantContent(t, root, "opq/after", "3")
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 4 {
		t.Errorf("root has %v, %v; want dir, first, opq, top", entries, err)
	}
	if want := []string{"dir", "first", "opq"}; !slices.Equal(result.Implied, want) {
		t.Errorf("implied %q, want %q", result.Implied, want)
	}
}

// A whiteout speaks of lower layers only: what the same layer has of that name stays, whatever the order.
func TestApplyWhiteoutBesideItsName(t *testing.T) {
	for name, entries := range map[string][]entry{
		"whiteout first": {file(".wh.f", ""), file(".wh.d", ""), file(".wh.i", ""), file("f", "1"), dir("d"), file("d/x", "2"), file("i/x", "3")},
		"whiteout last":  {file("f", "1"), dir("d"), file("d/x", "2"), file("i/x", "3"), file(".wh.f", ""), file(".wh.d", ""), file(".wh.i", "")},
		"twice":          {file(".wh.d", ""), file(".wh.d", ""), file("d/x", "2"), file(".wh.d", ""), file("f", "1"), file(".wh.i", ""), dir("i"), file("i/x", "3")},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := unpacked(t, entries...)
			wantContent(t, root, "f", "1")
			wantContent(t, root, "d/x", "2")
			wantContent(t, root, "i/x", "3")
			wantOpaque(t, root, "d", true)
			wantOpaque(t, root, "i", true)
			wantMode(t, root, "d", unix.S_IFDIR|0o755)
		})
	}
}

func TestApplyReplaces(t *testing.T) {
	root, _ := unpacked(t, file("a", "1"), dir("a"), file("a/b", "2"), dir("c"), file("c/d", "3"), file("c", "4"),
		symlink("l", "c"), file("l", "5"))
	wantContent(t, root, "a/b", "2")
	wantContent(t, root, "c", "4")
	wantContent(t, root, "l", "5")
}

func TestApplyImplied(t *testing.T) {
	root, result := unpacked(t, file("a/b/c/f", "1"), dir("a/b"), file("x/f", "2"), file("x", "file now"), dir("./"))
	if want := []string{"a", "a/b/c"}; !slices.Equal(result.Implied, want) {
		t.Errorf("implied %q, want %q", result.Implied, want)
	}
	wantMode(t, root, "a", unix.S_IFDIR|0o755)
}

func TestApplyBehindLinksInTheRoot(t *testing.T) {
	root, result := unpacked(t, dir("usr/lib"), symlink("lib", "usr/lib"), symlink("var/run", "/run"), dir("run"),
		symlink("lib64", "lib/../lib"), file("lib/a", "1"), file("var/run/b", "2"), file("lib64/c", "3"), file("/abs/d", "4"))
	wantContent(t, root, "usr/lib/a", "1")
	wantContent(t, root, "run/b", "2")
	wantContent(t, root, "usr/lib/c", "3")
	wantContent(t, root, "abs/d", "4")
	if want := []string{"abs", "usr", "var"}; !slices.Equal(result.Implied, want) {
		t.Errorf("implied %q, want %q", result.Implied, want)
	}
}

func TestApplyLongNames(t *testing.T) {
	long := strings.Repeat(strings.Repeat("n", 200)+"/", 5) + "file"
	pax, gnu := file("pax/"+long, "1"), file("gnu/"+long, "2")
	pax.Format, gnu.Format = tar.FormatPAX, tar.FormatGNU
	root, _ := unpacked(t, pax, gnu, symlink("link", long))
	wantContent(t, root, "pax/"+long, "1")
	wantContent(t, root, "gnu/"+long, "2")
	if target, err := os.Readlink(filepath.Join(root, "link")); target != long {
		t.Errorf("link of %d bytes, %v; want %d", len(target), err, len(long))
	}
}

func TestApplyUsage(t *testing.T) {
	root, result := unpacked(t, file("a", strings.Repeat("x", 100_000)), hardlink("b", "a"), dir("d"))
	// a with its second name, d, and the root
	if result.Inodes != 3 || result.Bytes < 100_000 || result.Bytes > 150_000 {
		t.Errorf("usage %+v of %s", result.Usage, root)
	}
}

// trailing counts what is read of it.
type trailing struct {
	io.Reader
	read int
	err  error
}

func (r *trailing) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.read += n
	if errors.Is(err, io.EOF) && r.err != nil {
		err = r.err
	}
	return n, err
}

func TestApplyReadsToTheEnd(t *testing.T) {
	needRoot(t)
	data := append(makeTar(t, file("f", "1")), make([]byte, 300_000)...)
	r := &trailing{Reader: bytes.NewReader(data)}
	if _, err := Apply(t.Context(), t.TempDir(), r, Limits{}); err != nil || r.read != len(data) {
		t.Errorf("read %d of %d bytes, %v", r.read, len(data), err)
	}
	mismatch := errors.New("digest mismatch")
	r = &trailing{Reader: bytes.NewReader(data), err: mismatch}
	if _, err := Apply(t.Context(), t.TempDir(), r, Limits{}); !errors.Is(err, mismatch) {
		t.Errorf("error of the reader's end: %v, want %v", err, mismatch)
	}
}

func TestApplyCanceled(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	data := makeTar(t, file("a", "1"), file("big", strings.Repeat("x", 1<<20)))
	r := io.MultiReader(bytes.NewReader(data[:1024]), readerFunc(func(p []byte) (int, error) {
		cancel()
		return copy(p, data[1024:]), nil
	}), neverEnding{})
	if _, err := Apply(ctx, t.TempDir(), r, Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled in the middle: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }
