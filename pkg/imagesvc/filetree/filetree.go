// Package filetree handles trees that may have files and directories only.
package filetree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"criserver/pkg/ctxreader"
	"criserver/pkg/imagesvc/document"
)

// Check refuses what is no file and no directory: document.ErrInvalid.
func Check(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && !entry.Type().IsRegular() {
			name, _ := filepath.Rel(dir, path)
			err = fmt.Errorf("%w: %q is neither a file nor a directory", document.ErrInvalid, name)
		}
		return err
	})
}

// Copy copies what is below a directory, files and directories that nobody changes, into an empty one.
func Copy(ctx context.Context, from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil || name == "." {
			return err
		}
		if entry.IsDir() {
			return os.Mkdir(filepath.Join(to, name), 0o700)
		}
		return copyFile(ctx, path, filepath.Join(to, name))
	})
}

func copyFile(ctx context.Context, from, to string) (err error) {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, ctxreader.New(ctx, in))
	return err
}
