package sweep_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"criserver/pkg/snapshot/sweep"
)

func TestRemove(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, build := range map[string]func(t *testing.T, path string) error{
		"file": func(_ *testing.T, path string) error { return os.WriteFile(path, nil, 0o600) },
		"link": func(_ *testing.T, path string) error { return os.Symlink(filepath.Dir(outside), path) },
		"none": func(*testing.T, string) error { return nil },
		"many": func(_ *testing.T, path string) error {
			err := os.Mkdir(path, 0o700)
			for i := range 1500 {
				err = errors.Join(err, os.WriteFile(fmt.Sprintf("%s/%d", path, i), nil, 0o600))
			}
			return errors.Join(err, os.Symlink(filepath.Dir(outside), path+"/link"), os.Mkdir(path+"/closed", 0))
		},
		"deep": func(t *testing.T, path string) error { // beyond what one path can say
			root, err := os.OpenRoot(filepath.Dir(path))
			for i := 0; i < 100 && err == nil; i++ {
				name := strings.Repeat("x", 250)
				if i == 0 {
					name = filepath.Base(path)
				}
				if err = root.Mkdir(name, 0o700); err == nil {
					var next *os.Root
					next, err = root.OpenRoot(name)
					root.Close()
					root = next
				}
			}
			if root != nil {
				root.Close()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tree")
			if err := build(t, path); err != nil {
				t.Fatal(err)
			}
			sweep.Remove(t.Context(), path)
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after: %v", err)
			}
			if _, err := os.Stat(outside); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRemoveStops(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(tree, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	sweep.Remove(ctx, tree)
	if _, err := os.Stat(filepath.Join(tree, "a/b")); err != nil {
		t.Errorf("deleted under a canceled context: %v", err)
	}
}

func TestSweeper(t *testing.T) {
	dir := t.TempDir()
	add := func(name string) {
		if err := os.MkdirAll(filepath.Join(dir, name, "a"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	add("left")
	swept := make(chan string, 10)
	s := sweep.New(dir, func(name string) { swept <- name })
	s.Start()
	if name := <-swept; name != "left" {
		t.Errorf("swept %s", name)
	}
	add("new")
	s.Wake()
	if name := <-swept; name != "new" {
		t.Errorf("swept %s", name)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
