package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// source remembers why reading ended early, so that it is told from what is wrong with what was read. Decompressors read in
// goroutines of their own.
type source struct {
	r   io.Reader
	err atomic.Pointer[error]
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err.Store(&err)
	}
	return n, err
}

// broken is the error that reading ended with, nil if there was none but io.EOF.
func (s *source) broken() error {
	if err := s.err.Load(); err != nil {
		return *err
	}
	return nil
}

// refusals are the kernel's answers to what no layer can be unpacked to, on this file system: EMLINK to more names of one file
// than it keeps, EINVAL, ERANGE and E2BIG to attributes, EILSEQ to names that are not in its encoding.
var refusals = []error{
	unix.ENAMETOOLONG, unix.ENOTDIR, unix.ELOOP, unix.EISDIR, unix.EEXIST, unix.ENOENT, unix.EMLINK,
	unix.EINVAL, unix.ERANGE, unix.E2BIG, unix.EILSEQ, unix.EFBIG,
}

// fault tells what the layer is the reason of, as ErrInvalid, from errors of reading, of the disk and of the caller, which keep
// their kind. The writer's texts are left out: they have names of any length, and paths that mean nothing to who pulls.
func (l *layer) fault(ctx context.Context, src *source, err error) error {
	var errno unix.Errno
	switch {
	case src.broken() != nil:
		return src.broken()
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, ErrInvalid):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w (%w): the tar ends too early", ErrInvalid, ErrDamaged)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("%w (%w): %w", ErrInvalid, ErrDamaged, err)
	case !errors.As(err, &errno):
		// Neither the reader nor the kernel has said it: it is what tar.Reader or the writer has against the tar.
		return fmt.Errorf("%w (%w): %.512s", ErrInvalid, ErrDamaged, strings.ReplaceAll(err.Error(), l.dir, ""))
	case errors.Is(errno, unix.ENOSPC) && l.xattrs > 0 && !isFull(l.dir): // ext4(5): a block for all of a file's, apart from ea_inode
		return fmt.Errorf("%w: its attributes, of %d bytes, are more than this file system keeps of one file", ErrInvalid, l.xattrs)
	case errors.Is(errno, unix.EPERM) && operation(err) == "link: ": // link(2): to a directory, behind whatever links
		return fmt.Errorf("%w: the kernel refuses it: hard link to a directory: %w", ErrInvalid, errno)
	case slices.Contains(refusals, error(errno)) && l.isThere():
		return fmt.Errorf("%w: the kernel refuses it: %s%w", ErrInvalid, operation(err), errno)
	}
	return fmt.Errorf("%s%w", operation(err), errno)
}

// isThere tells that it is not the layer's directory that is missing.
func (l *layer) isThere() bool {
	_, err := os.Lstat(l.dir)
	return err == nil
}

func operation(err error) string {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Op + ": "
	case errors.As(err, &link):
		return link.Op + ": "
	}
	return ""
}

// minFree is what a file system has left that is not full: more than one file's attributes take.
const minFree = 1 << 20

// isFull says whether there is no room in the file system of a directory. Where it cannot be told, there is none.
func isFull(dir string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	return err != nil || st.Bavail*uint64(st.Bsize) < minFree || st.Files > 0 && st.Ffree == 0
}
