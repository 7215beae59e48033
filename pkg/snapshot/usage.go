package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DiskUsage walks dir and adds up what it and all below it take: allocated blocks, each inode once however many
// names it has. Names that vanish during the walk are left out. It stops with the context's error.
func DiskUsage(ctx context.Context, dir string) (Usage, error) {
	return WalkUsage(ctx, dir, func(string) error { return nil })
}

// WalkUsage is DiskUsage that calls visit for each directory, parents first, when its names have been read. Paths are relative
// to dir, which is ".". It keeps in memory the names of directories on the way, and the inodes with several names.
func WalkUsage(ctx context.Context, dir string, visit func(path string) error) (Usage, error) {
	w := usageWalk{ctx: ctx, root: dir, visit: visit, linked: map[inode]struct{}{}}
	if err := w.run(); err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	return w.usage, nil
}

type inode struct{ dev, ino uint64 }

type usageWalk struct {
	ctx    context.Context
	root   string
	visit  func(path string) error
	usage  Usage
	linked map[inode]struct{}
}

func (w *usageWalk) run() error {
	var st unix.Stat_t
	if err := unix.Lstat(w.root, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: w.root, Err: err}
	}
	w.add(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return w.dir(".")
}

func (w *usageWalk) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inode{st.Dev, st.Ino}
		if _, seen := w.linked[id]; seen {
			return
		}
		w.linked[id] = struct{}{}
	}
	w.usage.Bytes += st.Blocks * 512 // stat(2): st_blocks counts 512-byte units
	w.usage.Inodes++
}

// dir adds up what is below a directory, with no more than one directory open: trees may be deeper than there are descriptors.
func (w *usageWalk) dir(path string) error {
	below, err := w.read(path)
	if err == nil {
		err = w.visit(path)
	}
	if err != nil {
		if path != "." && isVanished(err) {
			return nil
		}
		return err
	}
	for _, name := range below {
		if err := w.dir(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// isVanished says that a directory is no longer there, or that something else is in its place.
func isVanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// nameBatch is how many names of a directory, which may have any number, are in memory at a time.
const nameBatch = 1024

// read adds up the names in a directory and returns those of directories.
func (w *usageWalk) read(path string) (below []string, err error) {
	f, err := os.OpenFile(filepath.Join(w.root, path), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for {
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		names, err := f.Readdirnames(nameBatch)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				if errors.Is(err, unix.ENOENT) {
					continue
				}
				return nil, &fs.PathError{Op: "lstat", Path: filepath.Join(w.root, path, name), Err: err}
			}
			if w.add(&st); st.Mode&unix.S_IFMT == unix.S_IFDIR {
				below = append(below, name)
			}
		}
		if errors.Is(err, io.EOF) {
			return below, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
