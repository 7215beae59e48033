package filetree_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/filetree"
)

func TestCopy(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(from, "a/b"), 0o700), os.WriteFile(filepath.Join(from, "a/b/c"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(filetree.Check(from), filetree.Copy(t.Context(), from, to)); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(to, "a/b/c")); err != nil || string(data) != "x" {
		t.Errorf("copied %q, %v", data, err)
	}
	if err := os.Symlink("c", filepath.Join(from, "a/b/link")); err != nil {
		t.Fatal(err)
	}
	if err := filetree.Check(from); !errors.Is(err, document.ErrInvalid) {
		t.Errorf("a symlink: %v", err)
	}
}
