package bundle

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
	"criserver/test/hungfs"
)

// bound are directories, by the keys of snapshots.
type bound struct {
	driver
	dirs map[string]string
}

// driver panics at what is not here.
type driver interface{ Snapshots }

func (s bound) Prepare(_ context.Context, _, key string, _ []digest.Digest) ([]snapshot.Mount, error) {
	return []snapshot.Mount{{Type: "bind", Source: s.dirs[key]}}, nil
}

// A mount that the kernel does not end holds nobody beyond his time, and nothing is done behind its back.
func TestMountThatHangs(t *testing.T) {
	hung := hungfs.Mount(t)
	if err := os.Mkdir(filepath.Join(hung.Dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := &Store{Root: t.TempDir(), Snapshots: bound{dirs: map[string]string{"a": filepath.Join(hung.Dir, "d"), "b": t.TempDir()}}}
	for id := range map[string]bool{"a": true, "b": true} {
		t.Cleanup(func() {
			if err := s.Unmount(context.Background(), id); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(hung.Answer)
	hung.Hang()
	brief := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if err := s.Make(brief(), "a", Viewer{}, nil, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "mount root file system") {
		t.Errorf("a mount that hangs: %v", err)
	}
	if err := s.Unmount(brief(), "a"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "earlier mount") {
		t.Errorf("unmounted while it is mounted: %v", err)
	}
	if err := errors.Join(s.Make(t.Context(), "b", Viewer{}, nil, nil), s.Unmount(t.Context(), "b")); err != nil {
		t.Errorf("another one: %v", err)
	}
	hung.Answer()
	if err := s.Unmount(t.Context(), "a"); err != nil || s.Mounted("a") {
		t.Errorf("unmount: %v, mounted %t", err, s.Mounted("a"))
	}
	if _, err := os.Stat(s.RootFS("a")); !os.IsNotExist(err) {
		t.Errorf("the mount point: %v", err)
	}
}
