package unpack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"criserver/pkg/imagesvc/compression"
)

// Decompress returns the uncompressed tar of a layer blob. What the compression is, the blob's first bytes say:
// registries are known to serve gzip under the name of a plain tar and the other way round. The media type, which
// may be empty, says only that this is a layer; ErrInvalid if it is something else, or encrypted.
//
// Reading ends with ErrInvalid where the blob cannot be decompressed: checksums and what a stream ends with are checked, and
// nothing may follow it but more of the kind, not even zeros, as with containerd. Errors of r keep their kind.
// Closing frees the decompressor and does not close r.
//
// A zstd stream that needs a larger window than limits.Window is ErrInvalid. It waits until there is memory for one that is larger
// than what every decoder has.
func Decompress(ctx context.Context, mediaType string, r io.Reader, limits Limits) (io.ReadCloser, error) {
	if !isLayer(mediaType) {
		return nil, fmt.Errorf("%w: media type %.256q is not that of a tar layer", ErrInvalid, mediaType)
	}
	blob := &source{r: r}
	buffered := bufio.NewReaderSize(blob, 64<<10)
	magic, err := buffered.Peek(compression.MagicLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	form, window, release := compression.Of(magic), uint64(0), func() {}
	if form == compression.Zstd {
		if window, release, err = reserve(ctx, buffered, limits); err != nil {
			return nil, err
		}
	}
	// Two workers: blocks are decoded while the tar before them is written.
	plain, err := compression.NewReader(buffered, form, 2, window)
	if err != nil {
		release()
		return nil, undecodable(blob, form, err)
	}
	return &decompressor{plain, blob, form, release}, nil
}

// decompressor tells what is wrong with a blob from what is wrong with reading it.
type decompressor struct {
	io.ReadCloser
	blob    *source
	form    compression.Form
	release func()
}

// Read implements io.Reader.
func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader's end is never wrapped
		err = undecodable(d.blob, d.form, err)
	}
	return n, err
}

// Close implements io.Closer.
func (d *decompressor) Close() error {
	err := d.ReadCloser.Close()
	d.ReadCloser = closed{} // the decoder's memory is free, whoever still has this
	d.release()
	return err
}

type closed struct{}

func (closed) Read([]byte) (int, error) { return 0, fs.ErrClosed }

func (closed) Close() error { return nil }

// undecodable tells why the blob, which is of a form, cannot be decompressed.
func undecodable(blob *source, form compression.Form, err error) error {
	if broken := blob.broken(); broken != nil {
		return broken
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w (%w): its %s ends too early", ErrInvalid, ErrDamaged, form)
	}
	if errors.Is(err, compression.ErrWindow) {
		return fmt.Errorf("%w: a later frame of its zstd needs a larger window than the first", ErrInvalid)
	}
	return fmt.Errorf("%w (%w): decompress %s: %w", ErrInvalid, ErrDamaged, form, err)
}

// isLayer recognises the layer media types of OCI (image-spec, media-types.md) and of Docker's schema 2.
func isLayer(mediaType string) bool {
	mediaType, _, _ = strings.Cut(mediaType, ";")
	switch strings.TrimSpace(mediaType) {
	case "",
		"application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.v1.tar+gzip",
		"application/vnd.oci.image.layer.v1.tar+zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return true
	}
	return false
}
