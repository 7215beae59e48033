package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// DiskUsage walks dir and adds up what it and all below it take: allocated blocks, each inode once however many
// names it has. Names that vanish during the walk are left out. It stops with the context's error.
func DiskUsage(ctx context.Context, dir string) (Usage, error) {
	type inode struct{ dev, ino uint64 }
	var usage Usage
	linked := map[inode]struct{}{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		if err != nil {
			return skipVanished(path, dir, err)
		}
		info, err := entry.Info()
		if err != nil {
			return skipVanished(path, dir, err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Nlink > 1 && !entry.IsDir() {
			id := inode{st.Dev, st.Ino}
			if _, seen := linked[id]; seen {
				return nil
			}
			linked[id] = struct{}{}
		}
		usage.Bytes += st.Blocks * 512 // stat(2): st_blocks counts 512-byte units
		usage.Inodes++
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	return usage, nil
}

func skipVanished(path, dir string, err error) error {
	if path != dir && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
