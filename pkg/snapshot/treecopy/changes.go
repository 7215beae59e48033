package treecopy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const opaque = "trusted.overlay.opaque"

// Changes puts into the empty directory to what makes the tree before the tree after, in overlayfs's form: a character device 0/0 for
// a name that is gone. Both are of file systems of which one is a copy of the other, block by block, that went its own way: what has
// the same inode and the same time of change is the same. Nobody changes them meanwhile.
func Changes(ctx context.Context, before, after, to string) error {
	c := differ{copier{ctx: ctx, links: map[inode]string{}}}
	_, err := c.dir(before, after, to)
	return err
}

type differ struct{ copier }

// dir puts the changes of a directory that both trees have into one that is there, and tells whether there are any.
func (c differ) dir(before, after, to string) (changed bool, err error) {
	var was, is unix.Stat_t
	if err := errors.Join(lstat(before, &was), lstat(after, &is)); err != nil {
		return false, err
	}
	entries, err := os.ReadDir(after)
	if err != nil {
		return false, err
	}
	changed = !same(&was, &is)
	for _, e := range entries {
		if err := c.ctx.Err(); err != nil {
			return false, fmt.Errorf("compare %s: %w", after, context.Cause(c.ctx))
		}
		differs, err := c.name(filepath.Join(before, e.Name()), filepath.Join(after, e.Name()), filepath.Join(to, e.Name()))
		if err != nil {
			return false, err
		}
		changed = changed || differs
	}
	gone, err := c.gone(before, after, to)
	if err != nil {
		return false, err
	}
	if changed = changed || gone; changed {
		err = c.attributes(after, to, &is)
	}
	return changed, err
}

// name puts the change of a name that the tree after has.
func (c differ) name(before, after, to string) (changed bool, err error) {
	var was, is unix.Stat_t
	if err := lstat(after, &is); err != nil {
		return false, err
	}
	err = lstat(before, &was)
	isDir := is.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case errors.Is(err, unix.ENOENT) || err == nil && isDir && was.Mode&unix.S_IFMT != unix.S_IFDIR:
		return true, c.entry(after, to)
	case err != nil:
		return false, err
	case !isDir && same(&was, &is):
		return false, nil
	case !isDir:
		return true, c.entry(after, to)
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return false, err
	}
	changed, err = c.dir(before, after, to)
	if err == nil && !changed {
		err = os.Remove(to)
	}
	return changed, err
}

// gone marks the names that only the tree before has.
func (c differ) gone(before, after, to string) (changed bool, err error) {
	entries, err := os.ReadDir(before)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		_, err := os.Lstat(filepath.Join(after, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			changed = true
			err = unix.Mknod(filepath.Join(to, e.Name()), unix.S_IFCHR, 0)
		}
		if err != nil {
			return false, fmt.Errorf("compare %s: %w", filepath.Join(after, e.Name()), err)
		}
	}
	return changed, nil
}

func same(a, b *unix.Stat_t) bool { return a.Ino == b.Ino && a.Ctim == b.Ctim && a.Mode == b.Mode }

// Apply makes the changes that are in a directory, in overlayfs's form, to the tree to. A directory that is implied, by its path
// relative to changes, keeps the attributes that it has in the tree. No symbolic link is followed.
func Apply(ctx context.Context, changes, to string, implied map[string]bool) error {
	a := applier{copier: copier{ctx: ctx, links: map[inode]string{}}, root: changes, implied: implied}
	return a.dir(changes, to, true)
}

type applier struct {
	copier
	root    string
	implied map[string]bool
}

// dir makes the changes of a directory, which was there before, or not, and is there now.
func (a applier) dir(from, to string, before bool) error {
	var st unix.Stat_t
	if err := lstat(from, &st); err != nil {
		return err
	}
	if before {
		hides, err := IsOpaque(from)
		if err == nil && hides {
			err = removeBelow(to)
		}
		if err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := a.ctx.Err(); err != nil {
			return fmt.Errorf("apply %s: %w", from, context.Cause(a.ctx))
		}
		if err := a.name(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	path, err := filepath.Rel(a.root, from)
	if err != nil || before && a.implied[path] {
		return err
	}
	return a.attributes(from, to, &st)
}

func (a applier) name(from, to string) error {
	var st, old unix.Stat_t
	if err := lstat(from, &st); err != nil {
		return err
	}
	err := lstat(to, &old)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	there := err == nil
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if there && isDir && old.Mode&unix.S_IFMT == unix.S_IFDIR {
		return a.dir(from, to, true)
	}
	if there {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	if !isDir {
		return a.entry(from, to) // nothing, of a whiteout
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return a.dir(from, to, false)
}

// IsOpaque tells whether a directory in overlayfs's form hides what is below it.
func IsOpaque(dir string) (bool, error) {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, opaque, value[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ERANGE) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read opaque mark of %s: %w", dir, err)
	}
	return n == 1 && value[0] == 'y', nil
}

func removeBelow(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
