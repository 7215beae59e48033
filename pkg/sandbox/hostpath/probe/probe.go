// Package probe asks a file system for a path, which may take for ever: it is for a process that can be left behind.
package probe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Resolve follows the symlinks in a path, makes a directory of what does not exist, as the hostPath volumes of old Kubernetes
// releases expect and all runtimes do, and sees that what is there answers.
func Resolve(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if os.IsNotExist(err) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", fmt.Errorf("make host path %s: %w", path, err)
		}
		resolved, err = filepath.EvalSymlinks(path)
	}
	if err == nil {
		_, err = os.Stat(resolved)
	}
	if err != nil {
		return "", fmt.Errorf("resolve host path %s: %w", path, err)
	}
	return resolved, nil
}

// Look sees that what is at a path answers, and changes nothing.
func Look(path string) {
	_, _ = os.Lstat(filepath.Dir(path))
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		_, _ = os.Stat(resolved)
	}
}

// ErrIrregular says that something is no regular file.
var ErrIrregular = errors.New("no regular file")

// Open opens a regular file. ErrIrregular, fs.ErrNotExist.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a fifo would hang
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, ErrIrregular), f.Close())
	}
	return f, nil
}

// Copy writes what is in a regular file.
func Copy(w io.Writer, path string) error {
	f, err := Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// causes are the errors that a process tells by its exit code.
var causes = map[int]error{3: fs.ErrNotExist, 4: ErrIrregular}

// Code is the exit code of a process whose Copy has failed.
func Code(err error) int {
	for code, cause := range causes {
		if errors.Is(err, cause) {
			return code
		}
	}
	return 1
}

// Cause is what an exit code says; nil if only the process' words tell.
func Cause(code int) error { return causes[code] }
