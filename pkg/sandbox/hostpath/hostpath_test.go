package hostpath

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"criserver/pkg/sandbox/spec"
)

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := Resolve(t.Context(), []spec.Mount{
		{Source: filepath.Join(dir, "link"), Destination: "/a", ReadOnly: true}, {Source: filepath.Join(dir, "new/dir"), Destination: "/b"},
	})
	if err != nil || got[0].Source != filepath.Join(dir, "real") || !got[0].ReadOnly || got[1].Source != filepath.Join(dir, "new/dir") {
		t.Errorf("got %+v, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "new/dir")); err != nil || !info.IsDir() {
		t.Errorf("a missing source was not made: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(t.Context(), []spec.Mount{{Source: filepath.Join(dir, "file/x"), Destination: "/c"}}); err == nil ||
		!strings.Contains(err.Error(), "/c") {
		t.Errorf("a source below a file: %v", err)
	}
}
