package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
)

// make returns a writer of directories with a mode and an owner.
func directories(mode uint32, owner int, names ...string) func(string) error {
	return func(root string) error {
		for _, name := range names {
			path := filepath.Join(root, name)
			if err := errors.Join(os.MkdirAll(path, 0o755), os.Lchown(path, owner, owner), unix.Chmod(path, mode)); err != nil {
				return err
			}
		}
		return nil
	}
}

type look struct {
	mode  uint32
	owner uint32
}

func wantLook(t *testing.T, root, name string, want look) {
	t.Helper()
	info, err := os.Lstat(filepath.Join(root, name))
	if err != nil {
		t.Error(err)
		return
	}
	st := info.Sys().(*syscall.Stat_t)
	if got := (look{st.Mode & 0o7777, st.Uid}); got != want {
		t.Errorf("%s: %o, want %o", name, got, want)
	}
}

func TestInheritFromLowerLayers(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	base := commit(t, s, "base", func(root string) error {
		return errors.Join(directories(0o1777, 0, "tmp")(root), directories(0o750, 7, "a", "a/b", "gone", "opaque", "over")(root),
			unix.Setxattr(filepath.Join(root, "tmp"), "user.note", []byte("base"), 0),
			os.Symlink("/etc", filepath.Join(root, "swapped")))
	})
	middle := commit(t, s, "middle", func(root string) error {
		return errors.Join(directories(0o755, 0, "a", "a/b", "a/b/c")(root), directories(0o700, 9, "over")(root),
			unix.Mknod(filepath.Join(root, "gone"), unix.S_IFCHR, 0))
	}, "a", "a/b")
	top := commit(t, s, "top", func(root string) error {
		return errors.Join(directories(0o755, 0, "tmp", "a", "a/b", "gone", "opaque", "over", "new", "swapped/x")(root),
			unix.Setxattr(filepath.Join(root, "opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	}, "tmp", "a", "a/b", "gone", "opaque", "over", "new", "swapped", "swapped/x", "..", "/etc", ".")
	layers := []digest.Digest{base, middle, top}
	writable, err := s.Prepare(t.Context(), "rw", layers)
	if err != nil {
		t.Fatal(err)
	}
	readOnly, err := s.View(t.Context(), "ro", layers)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Mounts(t.Context(), "ro")
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{mountAt(t, writable), mountAt(t, readOnly), mountAt(t, again)} {
		for name, want := range map[string]look{
			"tmp":       {0o1777, 0},
			"a":         {0o750, 7}, // implied twice
			"a/b":       {0o750, 7},
			"a/b/c":     {0o755, 0}, // has an entry, seen through an inherited parent
			"over":      {0o700, 9}, // the uppermost entry counts
			"gone":      {0o755, 0}, // was removed in between
			"opaque":    {0o755, 0},
			"new":       {0o755, 0},
			"swapped":   {0o755, 0},
			"swapped/x": {0o755, 0},
		} {
			wantLook(t, root, name, want)
		}
		buf := make([]byte, 16)
		if n, err := unix.Getxattr(filepath.Join(root, "tmp"), "user.note", buf); err != nil || string(buf[:n]) != "base" {
			t.Errorf("attribute of tmp: %q, %v", buf[:max(n, 0)], err)
		}
	}
}

// A layer that is shared must not carry attributes from one image into another.
func TestInheritDoesNotLeakBetweenImages(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	lax := commit(t, s, "lax", directories(0o777, 0, "etc"))
	strict := commit(t, s, "strict", directories(0o700, 0, "etc"))
	shared := commit(t, s, "shared", directories(0o755, 0, "etc"), "etc")
	for key, test := range map[string]struct {
		layers []digest.Digest
		want   uint32
	}{
		"lax":    {[]digest.Digest{lax, shared}, 0o777},
		"strict": {[]digest.Digest{strict, shared}, 0o700},
		"alone":  {[]digest.Digest{shared}, 0o755},
	} {
		mounts, err := s.Prepare(t.Context(), key, test.layers)
		if err != nil {
			t.Fatal(err)
		}
		wantLook(t, mountAt(t, mounts), "etc", look{test.want, 0})
	}
}

// TestFill begins a writable layer with content, whose implied directories look like those below it.
func TestFill(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	base := commit(t, s, "base", func(root string) error {
		return errors.Join(directories(0o1777, 0, "tmp")(root), directories(0o750, 7, "a", "a/b", "over")(root),
			os.WriteFile(filepath.Join(root, "deleted"), nil, 0o600))
	})
	mounts, err := s.Prepare(t.Context(), "rw", []digest.Digest{base})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Fill(t.Context(), "rw", func(upper string) ([]string, error) {
		return []string{"tmp", "a/b", "new"}, errors.Join(directories(0o755, 0, "tmp", "new")(upper),
			directories(0o700, 9, "a", "over")(upper), directories(0o755, 0, "a/b")(upper),
			os.WriteFile(filepath.Join(upper, "tmp/file"), nil, 0o600), unix.Mknod(filepath.Join(upper, "deleted"), unix.S_IFCHR, 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	root := mountAt(t, mounts)
	for name, want := range map[string]look{
		"tmp":      {0o1777, 0},
		"tmp/file": {0o600, 0},
		"a":        {0o700, 9}, // has an entry
		"a/b":      {0o750, 7},
		"over":     {0o700, 9},
		"new":      {0o755, 0},
	} {
		wantLook(t, root, name, want)
	}
	if _, err := os.Lstat(filepath.Join(root, "deleted")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was deleted: %v", err)
	}
	failure := errors.New("no")
	if err := s.Fill(t.Context(), "rw", func(string) ([]string, error) { return nil, failure }); !errors.Is(err, failure) {
		t.Errorf("err = %v", err)
	}
	if err := s.Fill(t.Context(), "no", func(string) ([]string, error) { return nil, nil }); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("of no snapshot: %v", err)
	}
}
