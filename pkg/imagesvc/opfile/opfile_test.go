package opfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	file, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "pipe")
	if err := os.WriteFile(file, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		path  string
		limit int64
		says  string // "" if the file is read
	}{
		"as long as allowed": {file, 10, ""},
		"longer":             {file, 9, "larger than 9 bytes"},
		"missing":            {filepath.Join(dir, "none"), 10, "no such file"},
		"directory":          {dir, 10, "is a directory"},
		"pipe":               {pipe, 10, "no regular file"},
	} {
		done := make(chan error, 1)
		go func() {
			data, err := Read(test.path, test.limit)
			if err == nil && string(data) != "0123456789" {
				t.Errorf("%s: read %q", name, data)
			}
			done <- err
		}()
		select {
		case err := <-done:
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("%s: error %v, want one that says %q", name, err, test.says)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: hangs", name)
		}
	}
}

func TestStampOf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if stamp, err := StampOf(file); err == nil || stamp != (Stamp{}) {
		t.Errorf("missing: %v, %v", stamp, err)
	}
	seen := map[Stamp]bool{}
	for i, content := range []string{"a", "bb", "cc"} {
		fresh := file + ".new"
		if err := os.WriteFile(fresh, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(fresh, file); err != nil {
			t.Fatal(err)
		}
		stamp, err := StampOf(file)
		if err != nil || seen[stamp] || time.Since(stamp.Changed()) > time.Minute {
			t.Errorf("%d: %v, %v", i, stamp, err)
		}
		seen[stamp] = true
	}
}
