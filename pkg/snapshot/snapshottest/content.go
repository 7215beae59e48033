package snapshottest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func whiteout(name string) tree {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return unix.Mknod(path, unix.S_IFCHR, 0)
	}
}

func opaque(name string) tree {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		return unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0)
	}
}

func testLayersStack(t *testing.T, f *fixture) {
	layers := f.image(
		all(file("a/low", "1"), file("a/both", "1")),
		all(file("a/both", "2"), file("b/high", "2")),
	)
	for _, root := range []string{f.prepare("rw", layers), f.view("ro", layers)} {
		wantNames(t, root, "a", "b")
		wantNames(t, filepath.Join(root, "a"), "both", "low")
		wantContent(t, root, "a/low", "1")
		wantContent(t, root, "a/both", "2")
		wantContent(t, root, "b/high", "2")
	}
}

func testWhiteout(t *testing.T, f *fixture) {
	layers := f.image(
		all(file("dir/gone", "1"), file("dir/kept", "1"), file("tree/deep/x", "1")),
		all(whiteout("dir/gone"), whiteout("tree")),
	)
	for _, root := range []string{f.prepare("rw", layers), f.view("ro", layers)} {
		wantAbsent(t, root, "dir/gone")
		wantAbsent(t, root, "tree")
		wantNames(t, root, "dir")
		wantNames(t, filepath.Join(root, "dir"), "kept")
	}
}

func testWhiteoutOfWhiteout(t *testing.T, f *fixture) {
	layers := f.image(file("dir/f", "1"), whiteout("dir/f"), file("dir/f", "3"))
	root := f.prepare("back", layers)
	wantContent(t, root, "dir/f", "3")
	if err := os.Remove(filepath.Join(root, "dir/f")); err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, root, "dir/f")
}

func testOpaqueDir(t *testing.T, f *fixture) {
	layers := f.image(
		all(file("dir/low", "1"), file("dir/sub/low", "1"), file("other", "1")),
		all(opaque("dir"), file("dir/sub/high", "2")),
	)
	for _, root := range []string{f.prepare("rw", layers), f.view("ro", layers)} {
		wantNames(t, root, "dir", "other")
		wantNames(t, filepath.Join(root, "dir"), "sub")
		wantNames(t, filepath.Join(root, "dir/sub"), "high")
	}
}

func testOpaqueRoot(t *testing.T, f *fixture) {
	layers := f.image(file("low", "1"), all(opaque("."), file("mid", "2")), file("high", "3"))
	for _, root := range []string{f.prepare("rw", layers), f.view("ro", layers)} {
		wantNames(t, root, "high", "mid")
	}
}

func testFileReplacesDir(t *testing.T, f *fixture) {
	layers := f.image(file("x/y", "1"), file("x", "2"), file("x/z", "3"))
	wantContent(t, f.prepare("file", layers[:2]), "x", "2")
	root := f.prepare("dir", layers)
	wantNames(t, filepath.Join(root, "x"), "z")
}

func testCopyUp(t *testing.T, f *fixture) {
	layers := f.image(file("dir/f", "image"))
	first, second := f.prepare("first", layers), f.prepare("second", layers)
	log, err := os.OpenFile(filepath.Join(first, "dir/f"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.WriteString(" changed"); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	wantContent(t, first, "dir/f", "image changed")
	wantContent(t, second, "dir/f", "image")
	wantContent(t, f.view("third", layers), "dir/f", "image")
}

func testRemoveAndRecreateDir(t *testing.T, f *fixture) {
	root := f.prepare("dir", f.image(file("dir/sub/f", "1"), file("dir/g", "2")))
	dir := filepath.Join(root, "dir")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	wantNames(t, dir)
}

func testHardLinks(t *testing.T, f *fixture) {
	layers := f.image(all(file("a", "same"), func(dir string) error {
		return os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	}), file("c", "2"))
	root := f.prepare("links", layers)
	a, b := lstat(t, root, "a"), lstat(t, root, "b")
	if a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("inodes %d and %d with %d links, want one with 2", a.Ino, b.Ino, a.Nlink)
	}
	if err := os.Link(filepath.Join(root, "c"), filepath.Join(root, "d")); err != nil {
		t.Fatal(err)
	}
	wantContent(t, root, "d", "2")
}

func testXattrs(t *testing.T, f *fixture) {
	// VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE permitted, see capabilities(7).
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	attrs := map[string]string{"user.note": "value", "security.capability": capability}
	layers := f.image(all(file("bin", "x"), func(dir string) error {
		for name, value := range attrs {
			if err := unix.Setxattr(filepath.Join(dir, "bin"), name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	}), file("other", "2"))
	for _, root := range []string{f.prepare("rw", layers), f.view("ro", layers)} {
		for name, want := range attrs {
			buf := make([]byte, 64)
			n, err := unix.Getxattr(filepath.Join(root, "bin"), name, buf)
			if err != nil || string(buf[:n]) != want {
				t.Errorf("%s: %q, %v; want %q", name, buf[:max(n, 0)], err, want)
			}
		}
	}
}

func testDeviceNodes(t *testing.T, f *fixture) {
	null := unix.Mkdev(1, 3)
	layers := f.image(all(file("dev/x", ""), func(dir string) error {
		if err := unix.Mkfifo(filepath.Join(dir, "dev/fifo"), 0o600); err != nil {
			return err
		}
		return unix.Mknod(filepath.Join(dir, "dev/null"), unix.S_IFCHR|0o666, int(null))
	}), file("top", ""))
	root := f.prepare("dev", layers)
	if st := lstat(t, root, "dev/null"); st.Rdev != null || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		t.Errorf("dev/null: mode %o, device %#x", st.Mode, st.Rdev)
	}
	if err := os.WriteFile(filepath.Join(root, "dev/null"), []byte("x"), 0); err != nil {
		t.Errorf("write to device: %v", err)
	}
	if st := lstat(t, root, "dev/fifo"); st.Mode&unix.S_IFMT != unix.S_IFIFO {
		t.Errorf("dev/fifo: mode %o", st.Mode)
	}
}

func testModesAndOwners(t *testing.T, f *fixture) {
	modes := map[string]uint32{"suid": 0o4755, "sgid": 0o2755, "sticky": 0o1777, "none": 0}
	layers := f.image(func(dir string) error {
		for name, mode := range modes {
			path := filepath.Join(dir, name)
			err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 1000, 70000), unix.Chmod(path, mode))
			if err != nil {
				return err
			}
		}
		return nil
	}, file("top", ""))
	for _, root := range []string{f.prepare("rw", layers), f.view("ro", layers)} {
		for name, mode := range modes {
			st := lstat(t, root, name)
			if st.Mode&0o7777 != mode || st.Uid != 1000 || st.Gid != 70000 {
				t.Errorf("%s: mode %o, owner %d:%d; want %o, 1000:70000", name, st.Mode&0o7777, st.Uid, st.Gid, mode)
			}
		}
		if st := lstat(t, root, "."); st.Mode&0o7777 != 0o755 || st.Uid != 0 {
			t.Errorf("root: mode %o, owner %d; want 755, 0", st.Mode&0o7777, st.Uid)
		}
	}
}

// testManyLayers stacks as many layers as image builders make; what a driver can do beyond is for its own tests.
func testManyLayers(t *testing.T, f *fixture) {
	const count = 128
	trees := make([]tree, count)
	for i := range trees {
		trees[i] = all(file(fmt.Sprintf("files/%03d", i), ""), file("last", fmt.Sprint(i)))
	}
	layers := f.image(trees...)
	for _, n := range []int{2, 100, count} {
		for _, root := range []string{
			f.prepare(fmt.Sprint("rw", n), layers[:n]),
			f.view(fmt.Sprint("ro", n), layers[:n]),
		} {
			entries, err := os.ReadDir(filepath.Join(root, "files"))
			if err != nil || len(entries) != n {
				t.Errorf("%d layers show %d files, %v", n, len(entries), err)
			}
			wantContent(t, root, "last", fmt.Sprint(n-1))
		}
	}
}

func testRepeatedLayers(t *testing.T, f *fixture) {
	layers := f.image(file("f", "1"), whiteout("f"))
	stack := []digest.Digest{layers[0], layers[1], layers[0]}
	f.commitIfNew(stack[:3], file("f", "1"))
	wantContent(t, f.prepare("repeated", stack), "f", "1")
	wantNames(t, f.prepare("hidden", layers))
}

// commitIfNew commits the chain unless the driver has it, which depends on whether its layers know their position.
func (f *fixture) commitIfNew(chain []digest.Digest, content tree) {
	f.t.Helper()
	if _, err := f.Layer(f.t.Context(), chain); err != nil {
		f.commit(chain, content)
	}
}

func testNoLayers(t *testing.T, f *fixture) {
	root := f.prepare("scratch", nil)
	wantNames(t, root)
	if err := os.WriteFile(filepath.Join(root, "f"), nil, 0o600); err != nil {
		t.Error(err)
	}
	wantReadOnly(t, f.view("empty", nil))
}

func testViewIsReadOnly(t *testing.T, f *fixture) {
	layers := f.image(file("f", "1"), file("g", "2"))
	wantReadOnly(t, f.view("one", layers[:1]))
	wantReadOnly(t, f.view("two", layers))
	root := f.prepare("rw", layers)
	if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o600); err != nil {
		t.Errorf("writable snapshot: %v", err)
	}
}

func wantReadOnly(t *testing.T, root string) {
	t.Helper()
	err := os.WriteFile(filepath.Join(root, "new"), nil, 0o600)
	if !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only snapshot: %v", err)
	}
}

func lstat(t *testing.T, dir, name string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Lstat(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t)
}
