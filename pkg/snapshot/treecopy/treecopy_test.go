package treecopy

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// listing is what a tree has, of everything that is to be copied.
func listing(t *testing.T, dir string) string {
	t.Helper()
	script := `find . -printf '%p %y %m %U:%G %s %n %T@ %l\n' | sort; find . -type c -o -type p | sort | xargs stat -c '%n %t:%T'`
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners and device nodes need root")
	}
	from, to := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(from, name) }
	past := time.Unix(1e9, 123456789)
	must(t, os.MkdirAll(in("a/b"), 0o755), os.WriteFile(in("a/file"), []byte("content"), 0o600), os.Link(in("a/file"), in("second")),
		os.Symlink("/etc/passwd", in("out")), os.Symlink("..", in("a/up")), unix.Mkfifo(in("fifo"), 0o644),
		unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(in("gone"), unix.S_IFCHR, 0),
		os.Lchown(in("a/file"), 7, 8), os.Lchown(in("out"), 9, 9), unix.Chmod(in("a/file"), 0o4755), unix.Chmod(in("a/b"), 0o1777),
		os.Lchown(in("a/b"), 11, 12), unix.Setxattr(in("a/file"), "user.mark", []byte("x"), 0),
		unix.Setxattr(in("a"), "trusted.overlay.opaque", []byte("y"), 0), os.Chtimes(in("a/b"), past, past), os.Chtimes(in("a/file"), past, past),
		unix.Chmod(from, 0o711), os.Lchown(from, 13, 14))
	capability := append([]byte{1, 0, 0, 2, 0, 0x20}, make([]byte, 14)...) // cap_net_raw, struct vfs_cap_data
	must(t, unix.Setxattr(in("a/file"), "security.capability", capability, 0), Tree(t.Context(), from, to))
	must(t, os.Remove(in("gone")), os.Chtimes(from, past, past), os.Chtimes(to, past, past)) // the whiteout is not copied
	got, want := listing(t, to), listing(t, from)
	if got != want {
		t.Errorf("the copy is\n%s\nwant\n%s", got, want)
	}
	for _, name := range []string{"user.mark", "security.capability"} {
		value, err := xattr(func(buf []byte) (int, error) { return unix.Lgetxattr(filepath.Join(to, "a/file"), name, buf) })
		had, _ := xattr(func(buf []byte) (int, error) { return unix.Lgetxattr(in("a/file"), name, buf) })
		if len(value) == 0 || !bytes.Equal(value, had) {
			t.Errorf("%s is %q, %v; want %q", name, value, err, had)
		}
	}
	if _, err := unix.Getxattr(filepath.Join(to, "a"), "trusted.overlay.opaque", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("a mark of overlayfs is copied: %v", err)
	}
}

func TestHoles(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	f, err := os.Create(filepath.Join(from, "sparse"))
	must(t, err, f.Truncate(64<<20))
	_, err = f.WriteAt([]byte("end"), 48<<20)
	must(t, err, f.Close(), Tree(t.Context(), from, to))
	var was, is unix.Stat_t
	must(t, unix.Stat(filepath.Join(from, "sparse"), &was), unix.Stat(filepath.Join(to, "sparse"), &is))
	if is.Size != was.Size || is.Blocks > was.Blocks+64 {
		t.Errorf("%d bytes in %d blocks, want %d in %d", is.Size, is.Blocks, was.Size, was.Blocks)
	}
	copied, err := os.ReadFile(filepath.Join(to, "sparse"))
	must(t, err)
	if want := append(make([]byte, 48<<20), "end"...); !bytes.Equal(copied[:len(want)], want) {
		t.Error("the content is another")
	}
}

func TestEnds(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(from, "file"), []byte("x"), 0o600))
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("no time")
	cancel(cause)
	if err := Tree(ctx, from, to); !errors.Is(err, cause) {
		t.Errorf("err = %v", err)
	}
	must(t, os.Mkdir(filepath.Join(to, "taken"), 0o700), os.Mkdir(filepath.Join(from, "taken"), 0o700))
	if err := Tree(t.Context(), from, to); !errors.Is(err, os.ErrExist) {
		t.Errorf("into a directory that is not empty: %v", err)
	}
}
