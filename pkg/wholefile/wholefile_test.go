package wholefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteReplaces(t *testing.T) {
	for name, write := range map[string]func(string, []byte) error{"Write": Write, "WriteSynced": WriteSynced} {
		path := filepath.Join(t.TempDir(), "file")
		for _, want := range []string{"a long first content", "short"} {
			if err := write(path, []byte(want)); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != want {
				t.Errorf("%s: the file has %q, %v, want %q", name, got, err, want)
			}
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: the file has mode %v, %v, want 0600", name, info.Mode(), err)
		}
		if _, err := os.Lstat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file beside it is left: %v", name, err)
		}
	}
}

func TestWriteThatFailsLeavesTheFormerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := Write(path, []byte("former")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+".new", 0o700); err != nil { // which no content can be written to
		t.Fatal(err)
	}
	if err := Write(path, []byte("later")); err == nil {
		t.Error("there is no error")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "former" {
		t.Errorf("the file has %q, %v, want %q", got, err, "former")
	}
}
