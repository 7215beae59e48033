package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
)

func writes(name, content string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600) }
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s is %q, %v; want %q", path, got, err, want)
	}
}

func entries(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func restage(t *testing.T, s *Snapshotter, diffID digest.Digest, write func(string) error) {
	t.Helper()
	stage, err := s.Restage(t.Context(), []digest.Digest{diffID})
	if err != nil {
		t.Fatal(err)
	}
	if err := write(stage.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := stage.Commit(t.Context(), snapshot.Usage{Bytes: 2}); err != nil {
		t.Fatal(err)
	}
}

// A layer that is replaced stays for who has it mounted, also over a restart, and no longer.
func TestReplaceLayer(t *testing.T) {
	root := t.TempDir()
	s, closeIt := open(t, root, Options{})
	id := commit(t, s, "layer", writes("f", "damaged"))
	mounts, err := s.View(t.Context(), "old", []digest.Digest{id})
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := snapshot.MountAll(mounts, target); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = snapshot.Unmount(target) }()
	restage(t, s, id, writes("f", "right"))
	wantContent(t, filepath.Join(target, "f"), "damaged")
	dir, _, err := s.Tree(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, filepath.Join(dir, "f"), "right")
	if usage, err := s.Layer(t.Context(), []digest.Digest{id}); err != nil || usage.Bytes != 2 {
		t.Errorf("usage %v, %v", usage, err)
	}
	closeIt()
	s, closeIt = open(t, root, Options{})
	wantContent(t, filepath.Join(target, "f"), "damaged")
	wantContent(t, filepath.Join(dir, "f"), "right")
	if n := entries(t, filepath.Join(root, layersDir)); n != 2 {
		t.Errorf("%d directories of layers, want the new one and the old one", n)
	}
	if err := snapshot.Unmount(target); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	if n := entries(t, filepath.Join(root, layersDir)); n != 1 {
		t.Errorf("%d directories of layers, want the new one", n)
	}
	restage(t, s, id, writes("f", "third")) // nobody uses it: nothing is kept
	if n := entries(t, filepath.Join(root, layersDir)); n != 1 {
		t.Errorf("%d directories of layers, want the new one", n)
	}
	wantContent(t, filepath.Join(dir, "f"), "third")
	closeIt()
}

func TestTrees(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	ctx := t.Context()
	missing := digest.FromString("missing")
	if _, _, err := s.Tree(ctx, missing); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("tree: %v", err)
	}
	if _, err := s.Restage(ctx, []digest.Digest{missing}); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("restage: %v", err)
	}
	stage, err := s.Stage(ctx, []digest.Digest{digest.FromString("layer")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stage.Meta(), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := stage.Commit(ctx, snapshot.Usage{}); err != nil {
		t.Fatal(err)
	}
	_, meta, err := s.Tree(ctx, digest.FromString("layer"))
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, meta, "kept")
	for key, make := range map[string]func() ([]snapshot.Mount, error){
		"rw": func() ([]snapshot.Mount, error) { return s.Prepare(ctx, "rw", nil) },
		"ro": func() ([]snapshot.Mount, error) { return s.View(ctx, "ro", nil) },
	} {
		if _, err := make(); err != nil {
			t.Fatal(err)
		}
		n := -1
		err := s.Changes(ctx, key, func(dir string) error { n = entries(t, dir); return nil })
		if key == "rw" && (err != nil || n != 0) || key == "ro" && !errors.Is(err, snapshot.ErrNotFound) {
			t.Errorf("changes of %s: %d, %v", key, n, err)
		}
	}
}
