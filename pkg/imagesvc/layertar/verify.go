package layertar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"criserver/pkg/ctxreader"
)

// MaxProblems is how many problems Verify tells of. The layer is to be replaced with one as with all of them.
const MaxProblems = 1000

// Problem is something in a directory that is not as the tar says.
type Problem struct {
	// Path is relative to the directory; "" is the directory itself.
	Path string
	// What says what is wrong there, as in "is missing".
	What string
}

func (p Problem) String() string { return fmt.Sprintf("%q %s", p.Path, p.What) }

// errEnough ends a verification that has found MaxProblems.
var errEnough = errors.New("enough problems found")

// Verify compares a directory with the tar that Capture has seen: that all entries are there and nothing else, with type,
// size, content, mode, owner, target, device numbers, and the attributes that the tar gives them; the time of regular
// files; whiteouts and marks of opaque directories; no file capability of which the tar does not know. Directories that
// the tar has no entry for, but names below, may be as they are. No problems mean that the directory is as it was
// unpacked. An error means that it could not be compared: ErrMetadata if meta is not what Capture wrote.
func Verify(ctx context.Context, meta io.Reader, dir string) ([]Problem, error) {
	entries, err := openMeta(meta)
	if err != nil {
		return nil, err
	}
	defer entries.Close()
	root, err := openTree(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	v := &verifier{ctx: ctx, entries: entries, tree: root, names: newNames(), opaque: map[string]bool{}, buf: make([]byte, blockSize)}
	err = v.run()
	if errors.Is(err, errEnough) {
		err = nil
	}
	return v.problems, err
}

type verifier struct {
	ctx     context.Context
	entries *metaReader
	tree    *tree

	segment []byte // of the tar before the entry at hand: padding of the content before, and its header
	padding int64

	names     names
	whiteouts []string // hidden names
	opaque    map[string]bool
	problems  []Problem
	buf       []byte
}

func (v *verifier) run() error {
	for {
		entry, err := v.entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if entry.Type == storage.SegmentType {
			v.segment = entry.Payload
			continue
		}
		hdr, err := v.header()
		if err != nil {
			return fmt.Errorf("%w: header of %q: %w", ErrMetadata, entry.GetName(), err)
		}
		if err := v.entry(hdr, entry); err != nil {
			return err
		}
	}
	for _, name := range v.whiteouts {
		if err := v.whiteout(name); err != nil {
			return err
		}
	}
	return v.extras()
}

// header decodes what the tar has before the content of an entry. What follows the last one need not be a header.
func (v *verifier) header() (*tar.Header, error) {
	if v.padding > int64(len(v.segment)) {
		return nil, io.ErrUnexpectedEOF
	}
	tr := tar.NewReader(bytes.NewReader(v.segment[v.padding:]))
	hdr, err := tr.Next()
	v.segment, v.padding = nil, tr.ExpectedPadding()
	return hdr, err
}

func (v *verifier) report(name, format string, args ...any) error {
	v.problems = append(v.problems, Problem{name, fmt.Sprintf(format, args...)})
	if len(v.problems) == MaxProblems {
		return errEnough
	}
	return nil
}

func (v *verifier) entry(hdr *tar.Header, entry *storage.Entry) error {
	if err := v.ctx.Err(); err != nil {
		return err
	}
	name := clean(hdr.Name)
	if name == "" || isMeta(name) || hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if isWhiteout(name) {
		v.noteWhiteout(name)
		return nil
	}
	if err := v.names.add(hdr); err != nil {
		return fmt.Errorf("%w: entry %q: %w", ErrMetadata, hdr.Name, err)
	}
	n, err := v.tree.lookup(name)
	if isMissing(err) {
		return v.report(name, "is missing")
	}
	if err != nil {
		return err
	}
	defer n.Close()
	if hdr.Typeflag == tar.TypeLink {
		return v.hardLink(name, n, clean(hdr.Linkname))
	}
	if want := fileType(hdr.Typeflag); n.kind() != want {
		return v.report(name, "is of type %#o, not %#o", n.kind(), want)
	}
	if err := v.attributes(name, n, hdr); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		return v.content(name, n, entry)
	case tar.TypeSymlink:
		return v.symlink(name, n, hdr.Linkname)
	}
	return nil
}

func fileType(typeflag byte) uint32 {
	switch typeflag {
	case tar.TypeDir:
		return unix.S_IFDIR
	case tar.TypeSymlink:
		return unix.S_IFLNK
	case tar.TypeChar:
		return unix.S_IFCHR
	case tar.TypeBlock:
		return unix.S_IFBLK
	case tar.TypeFifo:
		return unix.S_IFIFO
	}
	return unix.S_IFREG
}

func (v *verifier) hardLink(name string, n node, target string) error {
	t, err := v.tree.lookup(target)
	if isMissing(err) {
		return nil // the target's entry tells so
	}
	if err != nil {
		return err
	}
	defer t.Close()
	if t.Dev != n.Dev || t.Ino != n.Ino {
		return v.report(name, "is no hard link to %q", target)
	}
	return nil
}

func (v *verifier) symlink(name string, n node, want string) error {
	target, err := n.readlink()
	if err == nil && target != want {
		return v.report(name, "leads to %q, not to %q", target, want)
	}
	return err
}

func (v *verifier) attributes(name string, n node, hdr *tar.Header) error {
	var errs []error
	if want := uint32(hdr.Mode) & 0o7777; n.Mode&0o7777 != want && hdr.Typeflag != tar.TypeSymlink {
		errs = append(errs, v.report(name, "has mode %#o, not %#o", n.Mode&0o7777, want))
	}
	if n.Uid != uint32(hdr.Uid) || n.Gid != uint32(hdr.Gid) {
		errs = append(errs, v.report(name, "belongs to %d:%d, not to %d:%d", n.Uid, n.Gid, hdr.Uid, hdr.Gid))
	}
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		if want := unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)); n.Rdev != want {
			errs = append(errs, v.report(name, "is device %d:%d, not %d:%d",
				unix.Major(n.Rdev), unix.Minor(n.Rdev), hdr.Devmajor, hdr.Devminor))
		}
	}
	if hdr.Typeflag == tar.TypeReg && !sameTime(n.Mtim, hdr.ModTime) {
		errs = append(errs, v.report(name, "has another modification time"))
	}
	errs = append(errs, v.xattrs(name, n, hdr))
	return errors.Join(errs...)
}

func (v *verifier) content(name string, n node, entry *storage.Entry) error {
	if n.Size != entry.Size {
		return v.report(name, "has %d bytes, not %d", n.Size, entry.Size)
	}
	if n.Size == 0 {
		return nil
	}
	file, err := n.open()
	if err != nil {
		return fmt.Errorf("file %q: %w", name, err)
	}
	defer file.Close()
	sum := newSum()
	if _, err := io.CopyBuffer(sum, ctxreader.New(v.ctx, file), v.buf); err != nil {
		if ctxErr := v.ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		return v.report(name, "cannot be read: %v", err) // a bad block of the disk
	}
	if string(sum.Sum(nil)) != string(entry.Payload) {
		return v.report(name, "has other content")
	}
	return nil
}
