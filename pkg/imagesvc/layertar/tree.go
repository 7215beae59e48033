package layertar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tree opens what is below a directory, and nothing else, whatever others do to the directory meanwhile.
type tree struct {
	root node
	dir  node   // the directory of the last name looked up,
	name string // and its name
}

func openTree(dir string) (*tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer directory: %w", &os.PathError{Op: "open", Path: dir, Err: err})
	}
	root, err := newNode(fd)
	if err != nil {
		return nil, err
	}
	return &tree{root: root, dir: root}, nil
}

// lookup returns the node of a clean name. Symbolic links are not followed: there is nothing behind them.
func (t *tree) lookup(name string) (node, error) {
	dir, base := parent(name), path.Base(name)
	if dir != t.name {
		next, err := t.openDir(dir)
		if err != nil {
			return node{}, err
		}
		t.closeDir()
		t.dir, t.name = next, dir
	}
	return t.dir.child(base)
}

func (t *tree) openDir(dir string) (node, error) {
	if dir == "" {
		return t.root, nil
	}
	fd, err := unix.Openat2(t.root.fd, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return node{}, fmt.Errorf("open directory %q: %w", dir, err)
	}
	return newNode(fd)
}

func (t *tree) closeDir() {
	if t.dir.fd != t.root.fd {
		t.dir.Close()
	}
}

func (t *tree) Close() {
	t.closeDir()
	t.root.Close()
}

// isMissing says whether an error of lookup means that there is no such name.
func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// node is an inode, of whatever kind, held without opening it for reading: devices and fifos are not touched.
type node struct {
	fd int
	unix.Stat_t
}

func newNode(fd int) (node, error) {
	n := node{fd: fd}
	if err := unix.Fstat(fd, &n.Stat_t); err != nil {
		n.Close()
		return node{}, fmt.Errorf("stat: %w", err)
	}
	return n, nil
}

func (n node) Close() { _ = unix.Close(n.fd) } // an O_PATH descriptor has nothing to lose

func (n node) kind() uint32 { return n.Mode & unix.S_IFMT }

func (n node) isDir() bool { return n.kind() == unix.S_IFDIR }

func (n node) isWhiteout() bool { return n.kind() == unix.S_IFCHR && n.Rdev == 0 }

func (n node) child(base string) (node, error) {
	fd, err := unix.Openat(n.fd, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return node{}, fmt.Errorf("open %q: %w", base, err)
	}
	return newNode(fd)
}

// proc is a path to this very inode.
func (n node) proc() string { return "/proc/self/fd/" + strconv.Itoa(n.fd) }

// open opens a regular file or a directory for reading.
func (n node) open() (*os.File, error) {
	fd, err := unix.Open(n.proc(), unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open for reading: %w", err)
	}
	return os.NewFile(uintptr(fd), n.proc()), nil
}

func (n node) readlink() (string, error) {
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return "", fmt.Errorf("read symbolic link: %w", err)
	}
	return string(buf[:size]), nil
}

// xattr returns an attribute's value, and false if there is none.
func (n node) xattr(name string) (string, bool, error) {
	buf := make([]byte, 256)
	for {
		size, err := unix.Getxattr(n.proc(), name, buf)
		switch {
		case err == nil:
			return string(buf[:size]), true, nil
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user."):
			return "", false, nil // EPERM: only files and directories have attributes of the user's
		case errors.Is(err, unix.ERANGE) && len(buf) < 64<<10: // XATTR_SIZE_MAX
			buf = make([]byte, 64<<10)
		default:
			return "", false, fmt.Errorf("read attribute %s: %w", name, err)
		}
	}
}

// hasXattrs says whether the file system has attributes of such names.
func (n node) hasXattrs(name string) bool {
	_, err := unix.Getxattr(n.proc(), name, nil)
	return !errors.Is(err, unix.ENOTSUP)
}

// xattrs returns the names of all attributes, sorted.
func (n node) xattrs() ([]string, error) {
	size, err := unix.Listxattr(n.proc(), nil)
	if size == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX
	if err == nil {
		size, err = unix.Listxattr(n.proc(), buf)
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:size]), "\x00"), "\x00")
	slices.Sort(names)
	return names, nil
}

// walk calls visit for all below a directory, by sorted names, a directory before what is in it, which is left out if
// visit returns false. A node is valid during its visit. What vanishes meanwhile is left out.
func (n node) walk(ctx context.Context, name string, visit func(name string, n node) (bool, error)) error {
	if strings.Count(name, "/") >= maxDepth {
		return fmt.Errorf("%w: %q is deeper than %d directories", ErrUnsupported, name, maxDepth)
	}
	dir, err := n.open()
	if err != nil {
		return fmt.Errorf("directory %q: %w", name, err)
	}
	bases, err := dir.Readdirnames(-1)
	if err = errors.Join(err, dir.Close()); err != nil {
		if errors.Is(err, unix.ENOENT) { // removed
			return nil
		}
		return fmt.Errorf("read directory %q: %w", name, err)
	}
	slices.Sort(bases)
	for _, base := range bases {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := n.walkChild(ctx, path.Join(name, base), visit); err != nil {
			return err
		}
	}
	return nil
}

func (n node) walkChild(ctx context.Context, name string, visit func(name string, n node) (bool, error)) error {
	child, err := n.child(path.Base(name))
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer child.Close()
	descend, err := visit(name, child)
	if err != nil {
		return fmt.Errorf("file %q: %w", name, err)
	}
	if !descend || !child.isDir() {
		return nil
	}
	return child.walk(ctx, name, visit)
}
