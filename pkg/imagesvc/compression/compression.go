// Package compression recognises and undoes the compressions that layers and archives of images come in.
package compression

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd frame can ask for: the limit of the zstd program without --long=28 and above.
const maxWindow = 128 << 20

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// Form is how a stream is compressed.
type Form string

// All forms.
const (
	None Form = ""
	Gzip Form = "gzip"
	Zstd Form = "zstd"
)

// MagicLen is how many bytes Of looks at.
const MagicLen = 4

// Of tells the form of a stream by its first bytes, of which there may be fewer than MagicLen.
func Of(magic []byte) Form {
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		return Gzip
	case bytes.HasPrefix(magic, zstdMagic), isSkippable(magic):
		return Zstd
	}
	return None
}

// isSkippable recognises a zstd skippable frame (RFC 8878, 3.1.2), which zstd:chunked layers may begin with.
func isSkippable(magic []byte) bool {
	return len(magic) >= MagicLen && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:MagicLen], []byte{0x2a, 0x4d, 0x18})
}

// NewReader returns what a stream of the form has in it. workers is how many goroutines decode zstd; with one, r is read by
// who reads the stream, and by nobody after that. Closing the reader frees it and does not close r.
func NewReader(r io.Reader, form Form, workers int) (io.ReadCloser, error) {
	switch form {
	case Gzip:
		gz, err := gzip.NewReader(r)
		if err != nil {
			return nil, err // not gz, which would be a nil pointer in an interface
		}
		return gz, nil
	case Zstd:
		zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return zr.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}
