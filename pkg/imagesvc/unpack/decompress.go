package unpack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"criserver/pkg/imagesvc/compression"
)

// Decompress returns the uncompressed tar of a layer blob. What the compression is, the blob's first bytes say:
// registries are known to serve gzip under the name of a plain tar and the other way round. The media type, which
// may be empty, says only that this is a layer; ErrInvalid if it is something else, or encrypted.
// Closing frees the decompressor and does not close r.
func Decompress(mediaType string, r io.Reader) (io.ReadCloser, error) {
	if !isLayer(mediaType) {
		return nil, fmt.Errorf("%w: media type %q is not that of a tar layer", ErrInvalid, mediaType)
	}
	buffered := bufio.NewReaderSize(r, 64<<10)
	magic, err := buffered.Peek(compression.MagicLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	form := compression.Of(magic)
	// Two workers: blocks are decoded while the tar before them is written.
	plain, err := compression.NewReader(buffered, form, 2)
	if err != nil {
		return nil, fmt.Errorf("%w: read %s header: %w", ErrInvalid, form, err)
	}
	return plain, nil
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
