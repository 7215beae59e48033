package unpack

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd frame can ask for: the limit of the zstd program without --long=28 and above.
const maxWindow = 128 << 20

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
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
	magic, err := buffered.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		gz, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("%w: read gzip header: %w", ErrInvalid, err)
		}
		return gz, nil
	case bytes.HasPrefix(magic, zstdMagic), isSkippable(magic):
		// Two workers: blocks are decoded while the tar before them is written.
		zr, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("%w: read zstd header: %w", ErrInvalid, err)
		}
		return zr.IOReadCloser(), nil
	}
	return io.NopCloser(buffered), nil
}

// isSkippable recognises a zstd skippable frame (RFC 8878, 3.1.2), which zstd:chunked layers may begin with.
func isSkippable(magic []byte) bool {
	return len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
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
