package content_test

import (
	_ "crypto/sha512" // for go-digest
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/content"
)

func open(t *testing.T, root string) *content.Store {
	t.Helper()
	s, err := content.New(root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLife(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	one, two := digest.FromString("one"), digest.SHA512.FromString("two")
	if _, err := s.Read(one); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("before: %v", err)
	}
	for range 2 {
		if err := errors.Join(s.Write(one, []byte("one")), s.Write(two, []byte("two"))); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, root)
	got, err := s.Read(two)
	if string(got) != "two" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	all, err := s.List()
	slices.Sort(all)
	if !slices.Equal(all, []digest.Digest{one, two}) || err != nil {
		t.Errorf("list: %v, %v", all, err)
	}
	for when, s := range map[string]*content.Store{"opened": s, "opened again": open(t, root)} {
		if bytes, files := s.Usage(); files != 2 || bytes == 0 {
			t.Errorf("%s: usage %d bytes, %d files", when, bytes, files)
		}
	}
	for range 2 {
		if err := s.Delete(one); err != nil {
			t.Error(err)
		}
	}
	if _, files := s.Usage(); files != 1 {
		t.Errorf("usage after delete: %d files", files)
	}
	if all, _ := s.List(); !slices.Equal(all, []digest.Digest{two}) {
		t.Errorf("list after delete: %v", all)
	}
}

// A failed write leaves neither the blob nor a file.
func TestFailedWriteLeavesNothing(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	for name, test := range map[string]struct {
		err  error
		call func() error
	}{
		"other content": {content.ErrDamaged, func() error { return s.Write(digest.FromString("x"), []byte("y")) }},
		"bad digest":    {digest.ErrDigestInvalidFormat, func() error { return s.Write("../../x", nil) }},
	} {
		if err := test.call(); !errors.Is(err, test.err) {
			t.Errorf("%s: err = %v, want %v", name, err, test.err)
		}
	}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if !d.IsDir() {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDamageIsFoundAndHealed(t *testing.T) {
	root := t.TempDir()
	s, d := open(t, root), digest.FromString("content")
	for name, damage := range map[string]string{"other": "CONTENT", "empty": "", "short": "cont", "long": "contents"} {
		if err := s.Write(d, []byte("content")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "sha256", d.Encoded()), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(d); !errors.Is(err, content.ErrDamaged) {
			t.Errorf("%s: err = %v", name, err)
		}
	}
	if err := s.Write(d, []byte("content")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Read(d); string(got) != "content" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestHalfWrittenIsClearedAtOpen(t *testing.T) {
	root := t.TempDir()
	open(t, root)
	left := filepath.Join(root, "tmp-123")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, root)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
	if all, err := s.List(); len(all) != 0 || err != nil {
		t.Errorf("list: %v, %v", all, err)
	}
}

func TestSameBlobAtTheSameTime(t *testing.T) {
	s, d := open(t, t.TempDir()), digest.FromString("content")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := s.Write(d, []byte("content")); err != nil {
				t.Error(err)
			}
			if got, err := s.Read(d); string(got) != "content" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	all.Wait()
}
