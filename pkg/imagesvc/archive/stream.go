package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"criserver/pkg/imagesvc/compression"
)

// refused is what other tools read and this does not.
var refused = map[string][]byte{"xz": {0xfd, '7', 'z', 'X', 'Z', 0}, "bzip2": []byte("BZh"), "zip": []byte("PK\x03\x04")}

// magicLen is how many bytes tell the form of a stream.
const magicLen = 6

// input is the stream as it comes. It keeps the error of reading it, which is not the archive's fault.
type input struct {
	r   io.Reader
	err error
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		i.err = err
	}
	return n, err
}

// stream is the tar in it, uncompressed.
type stream struct {
	input *input
	plain io.ReadCloser
	limit int64
	read  int64
	// ended: it was read from when nothing was left.
	ended bool
}

// errTooLarge is the stream's when its limit is passed.
var errTooLarge = errors.New("too large")

func newStream(in *input, limit int64) (*stream, error) {
	buffered := bufio.NewReaderSize(in, 256<<10)
	s := &stream{input: in, limit: limit}
	magic, err := buffered.Peek(magicLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, s.failed(err)
	}
	for name, m := range refused {
		if bytes.HasPrefix(magic, m) {
			return nil, fmt.Errorf("%w: it is in the form of %s; a tar is read, plain or compressed by gzip or zstd", ErrInvalid, name)
		}
	}
	if s.plain, err = compression.NewReader(buffered, compression.Of(magic), 1, compression.MaxWindow); err != nil {
		return nil, s.failed(err)
	}
	return s, nil
}

func (s *stream) Read(p []byte) (int, error) {
	if left := s.limit - s.read; int64(len(p)) > left {
		p = p[:left+1]
	}
	n, err := s.plain.Read(p)
	s.read += int64(n)
	if s.read > s.limit {
		return 0, errTooLarge
	}
	if n > 0 && errors.Is(err, io.EOF) {
		return n, nil // it comes again
	}
	s.ended = s.ended || errors.Is(err, io.EOF)
	return n, err
}

// finish reads what follows the tar: the padding that tars have, and the checksum of a compressed stream. Who writes into a
// pipe gets to write all of it.
func (s *stream) finish() error {
	switch {
	case s.ended && s.read == 0:
		return fmt.Errorf("%w: it is empty", ErrInvalid)
	case s.ended:
		return s.failed(io.ErrUnexpectedEOF) // a tar ends in two blocks of zeros (POSIX.1-1988, ustar)
	}
	if _, err := io.Copy(io.Discard, s); err != nil {
		return s.failed(err)
	}
	return nil
}

// failed says what an error of reading the tar means.
func (s *stream) failed(err error) error {
	switch {
	case s.input.err != nil:
		return fmt.Errorf("read archive: %w", s.input.err)
	case errors.Is(err, ErrInvalid):
		return err
	case errors.Is(err, errTooLarge):
		return fmt.Errorf("%w: it has more than the %d bytes that are allowed", ErrInvalid, s.limit)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends too early, after %d bytes of the tar: it was cut off when it was written or sent", ErrInvalid, s.read)
	case errors.Is(err, tar.ErrHeader) && s.read <= 1024:
		return fmt.Errorf("%w: it is no tar; a tar of an OCI layout or of \"docker save\" is read, plain or compressed by gzip or zstd",
			ErrInvalid)
	}
	return fmt.Errorf("%w: it is damaged after %d bytes of the tar: %w", ErrInvalid, s.read, err)
}
