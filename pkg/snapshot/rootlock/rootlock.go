// Package rootlock keeps the directory of a storage driver to one process.
package rootlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
)

// Take locks a directory until the file is closed, or the process ends. snapshot.ErrInUse: another one has it.
func Take(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of storage: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("storage %s is used by another process: %w", root, snapshot.ErrInUse)
		}
		return nil, fmt.Errorf("lock storage %s: %w", root, err)
	}
	return f, nil
}
