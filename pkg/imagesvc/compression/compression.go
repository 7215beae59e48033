// Package compression recognises and undoes the compressions that layers and archives of images come in.
package compression

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// MaxWindow is the largest window of zstd, in bytes, that one would decompress: the limit of the zstd program without --long=28
// and above. A decoder keeps that much in memory.
const MaxWindow = 128 << 20

// ErrWindow says that a stream needs a larger window than was allowed.
var ErrWindow = zstd.ErrWindowSizeExceeded

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

// Window tells the window that a stream of zstd asks for first, in bytes, by what it begins with. It is 0 where that is too short
// to tell.
func Window(head []byte) uint64 {
	for {
		var frame zstd.Header
		if frame.Decode(head) != nil {
			return 0
		}
		if !frame.Skippable {
			return frame.WindowSize
		}
		skip := uint64(frame.HeaderSize) + uint64(frame.SkippableSize)
		if skip >= uint64(len(head)) {
			return 0
		}
		head = head[skip:]
	}
}

// NewReader returns what a stream of the form has in it, and ErrWindow where zstd needs more than the window, in bytes. workers
// is how many goroutines decode zstd; with one, r is read by who reads the stream, and by nobody after that. Closing the reader
// frees it and does not close r.
func NewReader(r io.Reader, form Form, workers int, window uint64) (io.ReadCloser, error) {
	switch form {
	case Gzip:
		gz, err := gzip.NewReader(r)
		if err != nil {
			return nil, err // not gz, which would be a nil pointer in an interface
		}
		return gz, nil
	case Zstd:
		zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(window))
		if err != nil {
			return nil, err
		}
		return zr.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}
