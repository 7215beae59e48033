// Package treecopy copies trees of files with all that belongs to a file: owner, mode, times, extended attributes, holes, hard links,
// device nodes.
package treecopy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"criserver/pkg/ctxreader"
)

// Tree copies what is below the directory from, which nobody changes meanwhile, into the empty directory to, which gets the attributes
// of from. No symbolic link is followed, and nothing is opened but directories and files. Marks of overlayfs, whiteouts and trusted
// attributes, are left out. When ctx ends the copy ends where it is.
func Tree(ctx context.Context, from, to string) error {
	c := copier{ctx: ctx, links: map[inode]string{}}
	var st unix.Stat_t
	if err := lstat(from, &st); err != nil {
		return err
	}
	return c.dir(from, to, &st)
}

func lstat(path string, st *unix.Stat_t) error {
	if err := unix.Lstat(path, st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type copier struct {
	ctx   context.Context
	links map[inode]string // the first copy of what has several names
}

// dir copies into a directory that is there. Its attributes come last: who may not write into it is not the copier, but its times are
// those of the last name that was made.
func (c copier) dir(from, to string, st *unix.Stat_t) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := c.ctx.Err(); err != nil {
			return fmt.Errorf("copy %s: %w", from, context.Cause(c.ctx))
		}
		if err := c.entry(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			return err
		}
	}
	return c.attributes(from, to, st)
}

func (c copier) entry(from, to string) error {
	var st unix.Stat_t
	if err := lstat(from, &st); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && st.Rdev == 0 { // a whiteout
		return nil
	}
	if st.Nlink > 1 && kind != unix.S_IFDIR {
		id := inode{st.Dev, st.Ino}
		if first, again := c.links[id]; again {
			return os.Link(first, to)
		}
		c.links[id] = to
	}
	var err error
	switch kind {
	case unix.S_IFDIR:
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		return c.dir(from, to, &st)
	case unix.S_IFREG:
		err = c.file(from, to, st.Size)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	default:
		if err = unix.Mknod(to, st.Mode, int(st.Rdev)); err != nil {
			err = &os.PathError{Op: "mknod", Path: to, Err: err}
		}
	}
	if err != nil {
		return err
	}
	return c.attributes(from, to, &st)
}

// file copies the content of a file, but no holes.
func (c copier) file(from, to string, size int64) (err error) {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		start, end := data(in, at, size)
		if _, err := out.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(out, ctxreader.New(c.ctx, io.NewSectionReader(in, start, end-start))); err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
		at = end
	}
	return nil
}

// data is where the next data of a file begin and end. A file system that does not know has nothing else.
func data(f *os.File, from, size int64) (start, end int64) {
	start, err := unix.Seek(int(f.Fd()), from, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size
	}
	if err != nil {
		return from, size
	}
	if end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
		return start, size
	}
	return start, end
}

func (c copier) attributes(from, to string, st *unix.Stat_t) error {
	if err := Attributes(from, to, st); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times of %s: %w", to, err)
	}
	return nil
}

// Attributes gives to, of the same kind, the owner, the mode and the extended attributes of from, whose state is st. No symbolic link is
// followed.
func Attributes(from, to string, st *unix.Stat_t) error {
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("set owner of %s: %w", to, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // which has none
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil { // after chown, which clears bits
			return fmt.Errorf("set mode of %s: %w", to, err)
		}
	}
	return xattrs(from, to)
}

// xattrs leaves out trusted attributes: overlayfs keeps its own marks there.
func xattrs(from, to string) error {
	names, err := xattr(func(buf []byte) (int, error) { return unix.Llistxattr(from, buf) })
	if err != nil {
		return fmt.Errorf("list attributes of %s: %w", from, err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.") {
			continue
		}
		value, err := xattr(func(buf []byte) (int, error) { return unix.Lgetxattr(from, name, buf) })
		if err == nil {
			err = unix.Lsetxattr(to, name, value, 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s of %s: %w", name, from, err)
		}
	}
	return nil
}

// xattr calls get with a buffer of the size that get says it needs.
func xattr(get func([]byte) (int, error)) ([]byte, error) {
	n, err := get(nil)
	if err != nil || n == 0 {
		return nil, err
	}
	buf := make([]byte, n)
	n, err = get(buf)
	return buf[:max(n, 0)], err
}
