// Package unpack writes the tar of an image layer to a directory in the form that overlayfs reads: whiteouts become
// character devices 0/0, opaque directories get the attribute trusted.overlay.opaque.
//
// The tar comes from strangers. Writing is left to containerd's archive package, which keeps everything below the
// directory, also behind symbolic links; in front of it stands a check that refuses what would have to be
// kept in, so that such a layer fails by name instead of being unpacked to something else than it says.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	"criserver/pkg/ctxreader"
	"criserver/pkg/snapshot"
)

// ErrInvalid is wrapped when a layer must not, or cannot, be unpacked: trying again will not help.
var ErrInvalid = errors.New("invalid layer")

// ErrDamaged is wrapped beside ErrInvalid when the layer looks as if it had been damaged on its way.
var ErrDamaged = errors.New("possibly damaged on its way")

// Result tells what Apply wrote.
type Result struct {
	// Usage is what the directory takes on disk.
	snapshot.Usage
	// Implied are the directories, relative to dir and parents first, that the tar has names in but no entry for.
	// They were made with mode 0755, owner root. Hand them to snapshot.Inheritor. The root is never among them.
	Implied []string
}

// Apply unpacks one layer's uncompressed tar into dir, which is empty, and reads r to its end, so that a verifying
// reader gets to compare its digest. It reads r ahead in a goroutine, which has ended when Apply returns. On an error
// dir holds an unknown part of the layer.
//
// Kept: owner, mode with setuid, setgid and sticky bit, times, hard links, devices, fifos, user.* and security.*
// attributes. An absolute name counts from dir. The entry for the root itself is ignored, as containerd does: an image's
// root is mode 0755, owner root. ErrInvalid: no tar; more than the limits; a name, a hard link or a name behind a
// symbolic link that leaves dir; a name too long or of more than 256 components; a file in place of a directory; a
// whiteout without a name or used as a directory; an unknown type of entry; an owner or device number that the kernel does not
// have; sparse files beyond 4 GiB. A time before 1970 or after 2262 becomes 1970, as containerd does, and one that the file
// system does not have its last one; a tar that ends too early, and what the kernel refuses: hard links to nothing, to a
// directory or too many, empty targets, attributes with names or values that it does not take or that are larger than the file
// system keeps. Attributes of namespaces that the file system does not have are left out, as containerd does.
//
// Errors of r, of the disk and of the context keep their kind. What they quote of the tar is cut.
func Apply(ctx context.Context, dir string, r io.Reader, limits Limits) (result Result, err error) {
	if dir, err = filepath.Abs(dir); err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return Result{}, fmt.Errorf("resolve layer directory: %w", err)
	}
	defer burst()()
	ahead, stop, err := ReadAhead(&limited{r: ctxreader.New(ctx, r), limit: limits.Bytes})
	if err != nil {
		return Result{}, err
	}
	defer func() {
		if serr := stop(); err == nil && serr != nil {
			err = fmt.Errorf("end reading layer: %w", serr)
		}
	}()
	src := &source{r: ahead}
	layer := newLayer(dir, limits)
	if err := layer.write(ctx, src); err != nil {
		return Result{}, fmt.Errorf("unpack layer at entry %.256q: %w", layer.entry, layer.fault(ctx, src, err))
	}
	if _, err := io.Copy(io.Discard, src); err != nil {
		return Result{}, fmt.Errorf("read layer to its end: %w", err)
	}
	return layer.finish(ctx)
}

// write has the tar written, by the piece.
func (l *layer) write(ctx context.Context, r io.Reader) error {
	parts := &pieces{r: r}
	filter := func(hdr *tar.Header) (bool, error) {
		if parts.cut(hdr) {
			return false, errPiece
		}
		return l.admit(hdr)
	}
	for {
		_, err := archive.Apply(ctx, l.dir, parts, archive.WithFilter(filter), archive.WithConvertWhiteout(l.convertWhiteout))
		if !errors.Is(err, errPiece) {
			return err
		}
		parts.begin()
	}
}

// finish does what is left when all is written: it measures, and gives directories the times that they had before names were
// made in them.
func (l *layer) finish(ctx context.Context) (result Result, err error) {
	names := 0
	result.Usage, err = snapshot.WalkUsage(ctx, l.dir, func(path string) error {
		if path == "." {
			return nil
		}
		if mtime := l.get(path); mtime >= 0 {
			times := []unix.Timespec{unix.NsecToTimespec(mtime), unix.NsecToTimespec(mtime)}
			return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(l.dir, path), times, unix.AT_SYMLINK_NOFOLLOW)
		}
		if names += len(path); names > maxImplied {
			return fmt.Errorf("%w: the names of directories without an entry have more than %d bytes", ErrInvalid, maxImplied)
		}
		result.Implied = append(result.Implied, path)
		return nil
	})
	slices.Sort(result.Implied)
	return result, err
}
