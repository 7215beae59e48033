package layertar

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/ctxreader"
)

// Changes writes the tar of a layer (image-spec, layer.md) that makes the changes of an overlayfs upper directory: a
// whiteout becomes a file ".wh.NAME", an opaque directory gets a file ".wh..wh..opq", later names of an inode are hard
// links to the first, file capabilities and attributes of the user are kept, sockets and the root's own entry left out.
// The order is that of sorted names, times are whole seconds as in the layers of others, so that the same directory
// gives the same tar.
//
// The directory may be in use. Nothing is opened outside of it, whoever exchanges its files. A file that changes has the
// size and attributes that it had when its turn came, cut or filled with zeros; what vanishes before is left out.
// ErrChanged names files that changed while they were read; the tar is complete then, and it is the caller's to
// decide. ErrUnsupported names a file that no layer can have: one named as a whiteout, one that overlayfs has moved or
// copied up without its content (redirect_dir, metacopy), or one too deep; the tar ends there.
func Changes(ctx context.Context, upper string, w io.Writer) error {
	root, err := openTree(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	c := &changes{ctx: ctx, w: tar.NewWriter(w), links: map[inode]string{}, buf: make([]byte, blockSize)}
	if _, err := c.markOpaque("", root.root); err != nil {
		return fmt.Errorf("root of writable layer: %w", err)
	}
	if err := root.root.walk(ctx, "", c.visit); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := c.w.Close(); err != nil {
		return fmt.Errorf("end layer: %w", err)
	}
	return c.verdict()
}

type inode struct{ dev, ino uint64 }

type changes struct {
	ctx     context.Context
	w       *tar.Writer
	links   map[inode]string // names of inodes that have several
	changed []string
	buf     []byte
}

// verdict tells of the files that changed, some of them by name.
func (c *changes) verdict() error {
	const told = 10
	switch n := len(c.changed); {
	case n == 0:
		return nil
	case n > told:
		return fmt.Errorf("%q and %d more files: %w", c.changed[:told], n-told, ErrChanged)
	}
	return fmt.Errorf("%q: %w", c.changed, ErrChanged)
}

func (c *changes) visit(name string, n node) (bool, error) {
	if isWhiteout(name) {
		return false, fmt.Errorf("%w: its name would be read as a whiteout", ErrUnsupported)
	}
	if n.isWhiteout() {
		return false, c.writeMark(path.Join(parent(name), whiteoutPrefix+path.Base(name)))
	}
	if n.kind() == unix.S_IFSOCK {
		return false, nil
	}
	hdr, err := header(name, n)
	if err != nil {
		return false, err
	}
	if n.Nlink > 1 && !n.isDir() {
		id := inode{n.Dev, n.Ino}
		if first, ok := c.links[id]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size, hdr.PAXRecords = tar.TypeLink, first, 0, nil
			return false, c.writeHeader(hdr)
		}
		c.links[id] = name
	}
	switch {
	case n.isDir():
		if err := c.writeHeader(hdr); err != nil {
			return false, err
		}
		return c.markOpaque(name, n)
	case hdr.Size > 0:
		return false, c.writeFile(name, n, hdr)
	}
	return false, c.writeHeader(hdr)
}

func (c *changes) writeHeader(hdr *tar.Header) error {
	if err := c.w.WriteHeader(hdr); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	return nil
}

// writeMark writes an empty file, of a time that does not depend on when it was deleted.
func (c *changes) writeMark(name string) error {
	return c.writeHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// markOpaque hides what lower layers have in the directory, if overlayfs does. It returns true.
func (c *changes) markOpaque(name string, n node) (bool, error) {
	for _, attr := range []string{opaqueXattr, "user.overlay.opaque"} {
		value, _, err := n.xattr(attr)
		if err != nil {
			return false, err
		}
		switch value {
		case "":
		case "y":
			return true, c.writeMark(path.Join(name, whiteoutOpaque))
		default: // "x", for whiteouts in the form of attributes
			return false, fmt.Errorf("%w: attribute %s is %q", ErrUnsupported, attr, value)
		}
	}
	return true, nil
}

// writeFile writes as much as the header says, whatever has become of the file.
func (c *changes) writeFile(name string, n node, hdr *tar.Header) error {
	file, err := n.open()
	if err != nil {
		return err
	}
	defer file.Close()
	if err := c.writeHeader(hdr); err != nil {
		return err
	}
	written, err := io.CopyBuffer(plainWriter{c.w}, ctxreader.New(c.ctx, io.LimitReader(plainReader{file}, hdr.Size)), c.buf)
	if err != nil {
		return fmt.Errorf("copy content: %w", err)
	}
	if written < hdr.Size {
		if _, err := io.CopyBuffer(plainWriter{c.w}, ctxreader.New(c.ctx, io.LimitReader(zeros{}, hdr.Size-written)), c.buf); err != nil {
			return fmt.Errorf("fill up content: %w", err)
		}
	}
	now := unix.Stat_t{}
	if err := unix.Fstat(n.fd, &now); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if written < hdr.Size || now.Size != n.Size || now.Mtim != n.Mtim {
		c.changed = append(c.changed, name)
	}
	return nil
}

// plainWriter hides ReadFrom, which would not use the buffer at hand.
type plainWriter struct{ w *tar.Writer }

func (w plainWriter) Write(p []byte) (int, error) { return w.w.Write(p) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// header describes a node, without the names of users, which are the host's.
func header(name string, n node) (*tar.Header, error) {
	hdr := &tar.Header{
		Name:    name,
		Mode:    int64(n.Mode & 0o7777),
		Uid:     int(n.Uid),
		Gid:     int(n.Gid),
		ModTime: time.Unix(n.Mtim.Sec, 0),
		Format:  tar.FormatPAX,
	}
	switch n.kind() {
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, n.Size
	case unix.S_IFDIR:
		hdr.Typeflag, hdr.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		hdr.Typeflag = tar.TypeSymlink
		var err error
		if hdr.Linkname, err = n.readlink(); err != nil {
			return nil, err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if n.kind() == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(n.Rdev)), int64(unix.Minor(n.Rdev))
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	default:
		return nil, fmt.Errorf("%w: type %#o of file", ErrUnsupported, n.kind())
	}
	return hdr, addXattrs(hdr, n)
}

// addXattrs adds the attributes that are the image's. Labels of security modules are the host's, and trusted
// attributes overlayfs's own, of which two mean that the content is elsewhere.
func addXattrs(hdr *tar.Header, n node) error {
	attrs, err := n.xattrs()
	if err != nil {
		return err
	}
	for _, attr := range attrs {
		switch attr {
		case "trusted.overlay.redirect", "user.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.metacopy":
			return fmt.Errorf("%w: overlayfs has set %s, mount without redirect_dir and metacopy", ErrUnsupported, attr)
		}
		if attr != capability && (!strings.HasPrefix(attr, "user.") || strings.HasPrefix(attr, "user.overlay.")) {
			continue
		}
		value, ok, err := n.xattr(attr)
		if err != nil {
			return err
		}
		if !ok { // removed meanwhile
			continue
		}
		if strings.Contains(attr, "=") {
			return fmt.Errorf("%w: name of attribute %q", ErrUnsupported, attr)
		}
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords[xattrRecord+attr] = value
	}
	return nil
}
