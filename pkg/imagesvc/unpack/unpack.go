// Package unpack writes the tar of an image layer to a directory in the form that overlayfs reads: whiteouts become
// character devices 0/0, opaque directories get the attribute trusted.overlay.opaque.
//
// The tar comes from strangers. Writing is left to containerd's archive package, which keeps everything below the
// directory, also behind symbolic links; in front of it stands a check that refuses what would have to be
// kept in, so that such a layer fails by name instead of being unpacked to something else than it says.
package unpack

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/archive"

	"criserver/pkg/snapshot"
)

// ErrInvalid is wrapped when a layer must not, or cannot, be unpacked: trying again will not help.
var ErrInvalid = errors.New("invalid layer")

// maxSparse is what the holes and data of a layer's sparse files may add up to. They are written out in full, and a
// sparse header can claim any size at no cost.
const maxSparse = 4 << 30

// Result tells what Apply wrote.
type Result struct {
	// Usage is what the directory takes on disk.
	snapshot.Usage
	// Implied are the directories, relative to dir and parents first, that the tar has names in but no entry for.
	// They were made with mode 0755, owner root. Hand them to snapshot.Inheritor. The root is never among them.
	Implied []string
}

// Apply unpacks one layer's uncompressed tar into dir, which is empty, and reads r to its end, so that a verifying
// reader gets to compare its digest. On an error dir holds an unknown part of the layer.
//
// Kept: owner, mode with setuid, setgid and sticky bit, times, hard links, devices, fifos, user.* and security.*
// attributes. An absolute name counts from dir. The entry for the root itself is ignored, as containerd does: an image's
// root is mode 0755, owner root. ErrInvalid: a name, a hard link or a name behind a symbolic link that leaves dir; a
// whiteout without a name or used as a directory; sparse files beyond 4 GiB.
func Apply(ctx context.Context, dir string, r io.Reader) (Result, error) {
	return apply(ctx, dir, r, maxSparse)
}

func apply(ctx context.Context, dir string, r io.Reader, sparse int64) (Result, error) {
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return Result{}, fmt.Errorf("resolve layer directory: %w", err)
	}
	// archive/tar reads blocks of 512 bytes.
	buffered := bufio.NewReaderSize(contextReader{ctx, r}, 64<<10)
	layer := newLayer(dir, sparse)
	_, err = archive.Apply(ctx, dir, buffered,
		archive.WithFilter(layer.admit), archive.WithConvertWhiteout(layer.convertWhiteout))
	if err != nil {
		if errors.Is(err, tar.ErrHeader) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return Result{}, fmt.Errorf("unpack layer at entry %q: %w", layer.entry, err)
	}
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		return Result{}, fmt.Errorf("read layer to its end: %w", err)
	}
	usage, err := snapshot.DiskUsage(ctx, dir)
	if err != nil {
		return Result{}, err
	}
	return Result{Usage: usage, Implied: layer.implied()}, nil
}

// contextReader ends reading, between two reads, with the context's error.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
