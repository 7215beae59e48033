package layertar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"criserver/pkg/imagesvc/unpack"
)

// writable is an overlay mount over a layer, as a container has.
type writable struct{ lower, upper, root string }

func newWritable(t *testing.T, entries ...entry) writable {
	t.Helper()
	needRoot(t)
	w := writable{lower: t.TempDir(), upper: t.TempDir(), root: t.TempDir()}
	apply(t, w.lower, makeTar(t, entries...))
	mountOverlay(t, w.root, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,metacopy=off,redirect_dir=off", w.lower, w.upper, t.TempDir()))
	return w
}

func apply(t *testing.T, root string, data []byte) {
	t.Helper()
	if _, err := unpack.Apply(t.Context(), root, bytes.NewReader(data), unpack.Limits{}); err != nil {
		t.Fatal(err)
	}
}

func mountOverlay(t *testing.T, root, options string) {
	t.Helper()
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		t.Skipf("no overlayfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func changed(t *testing.T, upper string) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := Changes(t.Context(), upper, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// inventory tells all of a tree that a layer keeps.
func inventory(t *testing.T, root string) string {
	t.Helper()
	var out strings.Builder
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err = errors.Join(err, unix.Lstat(path, &st)); err != nil || path == root {
			return err
		}
		name := strings.TrimPrefix(path, root)
		fmt.Fprintf(&out, "%s mode %o owner %d:%d device %d", name, st.Mode, st.Uid, st.Gid, st.Rdev)
		if !d.IsDir() {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			fmt.Fprintf(&out, " links %d of %s", st.Nlink, first[st.Ino])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			fmt.Fprintf(&out, " time %d content %.30q of %d %v", st.Mtim.Sec, content, len(content), err)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			fmt.Fprintf(&out, " to %q %v", target, err)
		}
		for _, attr := range []string{"user.note", "security.capability"} {
			buf := make([]byte, 64)
			if n, err := unix.Lgetxattr(path, attr, buf); err == nil {
				fmt.Fprintf(&out, " %s=%q", attr, buf[:n])
			}
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// What a container has done to its files, another one that is made of the new layer has too.
func TestChanges(t *testing.T) {
	tool := file("bin/tool", "lower")
	tool.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "kept"}
	w := newWritable(t, dir("bin"), tool, file("bin/gone", "1"), dir("etc"), file("etc/conf", "1"), file("etc/same", "1"),
		dir("old"), file("old/a", "1"), dir("old/deep"), file("old/deep/b", "1"), dir("again"), file("again/a", "1"),
		dir("tofile"), file("tofile/x", "1"), file("todir", "1"), dir("usr"), dir("usr/share"), file("usr/share/doc", "1"))
	in := func(name string) string { return filepath.Join(w.root, name) }
	socket, err := net.Listen("unix", in("etc/socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	err = errors.Join(
		os.Remove(in("bin/gone")),
		os.RemoveAll(in("old")),
		os.RemoveAll(in("again")), os.Mkdir(in("again"), 0o2775), os.WriteFile(in("again/new"), []byte("2"), 0o600),
		os.RemoveAll(in("tofile")), os.WriteFile(in("tofile"), []byte("2"), 0o600),
		os.Remove(in("todir")), os.Mkdir(in("todir"), 0o700), os.WriteFile(in("todir/f"), []byte("2"), 0o600),
		os.WriteFile(in("etc/conf"), []byte("changed"), 0o644), os.Chown(in("etc/conf"), 1000, 2000),
		os.Chmod(in("bin/tool"), 0o4755),
		os.Link(in("etc/conf"), in("etc/aaa")), os.Link(in("etc/conf"), in("usr/share/zzz")),
		os.Symlink("../etc/conf", in("bin/link")), os.Link(in("bin/link"), in("bin/link2")),
		unix.Mkfifo(in("etc/fifo"), 0o640), unix.Mknod(in("etc/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(in("etc/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 300))),
		os.WriteFile(in("etc/empty"), nil, 0o644), unix.Setxattr(in("etc/empty"), "user.note", []byte{0, '=', '\n'}, 0),
		os.WriteFile(in("bin/ping"), []byte("x"), 0o755),
		unix.Setxattr(in("bin/ping"), "security.capability", []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0),
		os.WriteFile(in("umlaut \xe4\xff"), []byte("x"), 0o644),
		os.WriteFile(in(strings.Repeat("long", 60)), bytes.Repeat([]byte("0123456789"), 100_000), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	data := changed(t, w.upper)
	if again := changed(t, w.upper); !bytes.Equal(again, data) {
		t.Error("the same directory gives another tar")
	}
	if err := os.Remove(in("etc/socket")); err != nil {
		t.Fatal(err)
	}
	layer, root := t.TempDir(), t.TempDir()
	apply(t, layer, data)
	mountOverlay(t, root, fmt.Sprintf("lowerdir=%s:%s", layer, w.lower))
	got, want := inventory(t, root), inventory(t, w.root)
	if got != want {
		t.Errorf("a container of the new layer has\n%s\nwant\n%s", got, want)
	}
	var tarNames []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		tarNames = append(tarNames, hdr.Name)
		if hdr.Uname != "" || strings.Contains(fmt.Sprint(hdr.PAXRecords), "overlay") {
			t.Errorf("%s: user %q, records %q", hdr.Name, hdr.Uname, hdr.PAXRecords)
		}
	}
	for _, name := range []string{"bin/.wh.gone", ".wh.old", "again/.wh..wh..opq"} {
		if !slices.Contains(tarNames, name) {
			t.Errorf("no %s among %q", name, tarNames)
		}
	}
	if slices.Contains(tarNames, "etc/same") {
		t.Error("a file that was not changed is in the layer")
	}
}

func TestChangesOfNothing(t *testing.T) {
	w := newWritable(t, file("f", "1"))
	if r := tar.NewReader(bytes.NewReader(changed(t, w.upper))); r != nil {
		if hdr, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("entry %v, %v", hdr, err)
		}
	}
	if err := Changes(t.Context(), w.upper+"/none", io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestChangesOpaque(t *testing.T) {
	needRoot(t)
	for _, attr := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		upper := t.TempDir()
		err := errors.Join(os.MkdirAll(upper+"/a/d", 0o755), unix.Setxattr(upper+"/a", attr, []byte("y"), 0), unix.Setxattr(upper, attr, []byte("y"), 0))
		if err != nil {
			t.Fatal(err)
		}
		root := t.TempDir()
		apply(t, root, changed(t, upper))
		for name, want := range map[string]bool{"": true, "a": true, "a/d": false} {
			buf := make([]byte, 4)
			n, err := unix.Getxattr(filepath.Join(root, name), opaqueXattr, buf)
			if got := err == nil && string(buf[:n]) == "y"; got != want {
				t.Errorf("%s: %q opaque: %v, want %v", attr, name, got, want)
			}
		}
	}
}

func TestChangesRefuses(t *testing.T) {
	needRoot(t)
	for name, make := range map[string]func(path string) error{
		"redirect": func(path string) error {
			return errors.Join(os.Mkdir(path, 0o755), unix.Setxattr(path, "trusted.overlay.redirect", []byte("/x"), 0))
		},
		"metacopy": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), unix.Setxattr(path, "trusted.overlay.metacopy", nil, 0))
		},
		"opaque x": func(path string) error {
			return errors.Join(os.Mkdir(path, 0o755), unix.Setxattr(path, opaqueXattr, []byte("x"), 0))
		},
		".wh.file": func(path string) error { return os.WriteFile(path, nil, 0o644) },
		strings.Repeat("d", 10): func(path string) error {
			return os.MkdirAll(path+strings.Repeat("/d", maxDepth+1), 0o755)
		},
	} {
		upper := t.TempDir()
		if err := make(filepath.Join(upper, name)); err != nil {
			t.Fatal(err)
		}
		err := Changes(t.Context(), upper, io.Discard)
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("%s: error %v, want %v naming it", name, err, ErrUnsupported)
		}
	}
}

// onWrite calls do when the tar has come to a string.
type onWrite struct {
	bytes.Buffer
	when string
	do   func() error
	err  error
}

func (w *onWrite) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if w.do != nil && bytes.Contains(p, []byte(w.when)) {
		w.err, w.do = w.do(), nil
	}
	return n, err
}

// Files that change between their header and their end leave a tar that is one.
func TestChangesOfChangingFiles(t *testing.T) {
	needRoot(t)
	const size = 1 << 20
	for name, test := range map[string]struct {
		do      func(upper string) error
		content int  // bytes of b that are not zero
		told    bool // the change by name
		without string
	}{
		"shrinks":  {func(upper string) error { return os.Truncate(upper+"/b", 1000) }, 1000, true, ""},
		"grows":    {func(upper string) error { return appendTo(upper+"/b", "more") }, size, true, ""},
		"vanishes": {func(upper string) error { return os.Remove(upper + "/b") }, size, false, ""},
		"later, vanishes": {func(upper string) error {
			return errors.Join(os.Remove(upper+"/c"), os.RemoveAll(upper+"/d"))
		}, size, false, "c"},
		"later, a link to the host": {func(upper string) error {
			return errors.Join(os.Remove(upper+"/c"), os.Symlink("/etc/passwd", upper+"/c"), os.RemoveAll(upper+"/d"), os.Symlink("/etc", upper+"/d"))
		}, size, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			upper := t.TempDir()
			err := errors.Join(os.WriteFile(upper+"/a", nil, 0o644), os.WriteFile(upper+"/b", bytes.Repeat([]byte("x"), size), 0o644),
				os.WriteFile(upper+"/c", []byte("c"), 0o644), os.Mkdir(upper+"/d", 0o755), os.WriteFile(upper+"/d/passwd", []byte("d"), 0o644))
			if err != nil {
				t.Fatal(err)
			}
			// The header of b has been written when this is seen.
			w := &onWrite{when: "b\x00", do: func() error { return test.do(upper) }}
			err = Changes(t.Context(), upper, w)
			if told := errors.Is(err, ErrChanged) && strings.Contains(err.Error(), `"b"`); told != test.told || !told && err != nil {
				t.Errorf("error %v, want one that names b: %v", err, test.told)
			}
			if w.err != nil || w.do != nil {
				t.Fatalf("test did nothing: %v", w.err)
			}
			root := t.TempDir()
			apply(t, root, w.Bytes())
			got, err := os.ReadFile(root + "/b")
			if err != nil || len(got) != size || bytes.Count(got, []byte("x")) != test.content {
				t.Errorf("b has %d bytes, %d of them not zero, %v; want %d and %d", len(got), bytes.Count(got, []byte("x")), err, size, test.content)
			}
			if passwd, err := os.ReadFile(root + "/d/passwd"); err == nil && string(passwd) != "d" {
				t.Log("d is a link, which the layer keeps as one")
			}
			if _, err := os.Lstat(root + "/" + test.without); test.without != "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is in the layer: %v", test.without, err)
			}
			if bytes.Contains(w.Bytes(), []byte("root:")) {
				t.Error("the host's files are in the layer")
			}
		})
	}
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func TestChangesCanceled(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	if err := os.WriteFile(upper+"/f", bytes.Repeat([]byte("x"), 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &onWrite{when: "f\x00", do: func() error { cancel(); return nil }}
	if err := Changes(ctx, upper, w); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	full := errors.New("disk full")
	if err := Changes(t.Context(), upper, failingWriter{full}); !errors.Is(err, full) {
		t.Errorf("error %v, want %v", err, full)
	}
}
