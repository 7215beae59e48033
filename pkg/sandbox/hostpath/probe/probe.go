// Package probe asks a file system for a path, which may take for ever: it is for a process that can be left behind.
package probe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrUnusable says that a path is wrong, and not its file system.
var ErrUnusable = errors.New("unusable path")

// unusable is an ErrUnusable in the words of another error.
type unusable struct{ error }

func (unusable) Is(target error) bool { return target == ErrUnusable }

// Unusable makes an ErrUnusable of an error.
func Unusable(err error) error { return unusable{err} }

// wrong are the errors of such paths (path_resolution(7)): below a file, or a link that leads nowhere or in a circle, too long, or where
// nobody may be or make anything.
var wrong = []error{
	unix.ENOTDIR, unix.EEXIST, unix.ENOENT, unix.ELOOP, unix.ENAMETOOLONG, unix.EACCES, unix.EPERM, unix.EROFS, unix.EINVAL,
}

// Blame makes an ErrUnusable of an error that the path is to blame for.
func Blame(err error) error {
	if slices.ContainsFunc(wrong, func(e error) bool { return errors.Is(err, e) }) {
		return Unusable(err)
	}
	return err
}

// Resolve follows the symlinks in a path, makes a directory of what does not exist, as the hostPath volumes of old Kubernetes
// releases expect and all runtimes do, and sees that what is there answers. ErrUnusable.
func Resolve(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if os.IsNotExist(err) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", fmt.Errorf("make host path %s: %w", path, Blame(err))
		}
		resolved, err = filepath.EvalSymlinks(path)
	}
	if err == nil {
		_, err = os.Stat(resolved)
	} else if _, serr := os.Stat(path); serr != nil {
		err = serr // the kernel's own word, which the library does not have for a circle of links
	}
	if err != nil {
		return "", fmt.Errorf("resolve host path %s: %w", path, Blame(err))
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

// causes are the errors that a process tells by its exit code, which is firstCode for the first; the first that fits is told.
var causes = []error{ErrUnusable, fs.ErrNotExist, ErrIrregular}

const firstCode = 3

// Code is the exit code of a process whose Resolve or Copy has failed.
func Code(err error) int {
	if i := slices.IndexFunc(causes, func(cause error) bool { return errors.Is(err, cause) }); i >= 0 {
		return firstCode + i
	}
	return 1
}

// Cause is what an exit code says; nil if only the process' words tell.
func Cause(code int) error {
	if i := code - firstCode; i >= 0 && i < len(causes) {
		return causes[i]
	}
	return nil
}
