package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"criserver/pkg/ctxreader"
	"criserver/pkg/snapshot"
)

// File writes a file of an artifact into dir, which is empty, and reads r to its end. The name is a local path
// (filepath.IsLocal) that has been checked. ErrInvalid: it is larger than the limits.
func File(ctx context.Context, dir, name string, r io.Reader, limits Limits) (snapshot.Usage, error) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return snapshot.Usage{}, fmt.Errorf("make directory of an artifact: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return snapshot.Usage{}, fmt.Errorf("write file of an artifact: %w", err)
	}
	_, err = io.Copy(f, &limited{r: ctxreader.New(ctx, r), limit: limits.Bytes})
	if err = errors.Join(err, f.Close()); err != nil {
		return snapshot.Usage{}, fmt.Errorf("write file of an artifact: %w", err)
	}
	return snapshot.DiskUsage(ctx, dir)
}

// Empty removes what is in a directory.
func Empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty directory: %w", err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("empty directory: %w", err)
		}
	}
	return nil
}
