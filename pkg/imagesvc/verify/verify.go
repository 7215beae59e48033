// Package verify checks content while it is read, so that nobody can forget to.
package verify

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	// What go-digest can use must be linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

var (
	// ErrDigest: the content is not what its digest promises, or longer than it should be.
	ErrDigest = errors.New("digest mismatch")
	// ErrTruncated: the content ended before its size.
	ErrTruncated = errors.New("truncated")
)

// Unknown is the size of content of which only the digest is known.
const Unknown = -1

// CheckDigest says why a digest cannot be used: its form, or an algorithm that is not known here.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	return nil
}

// Reader returns what it reads from another reader, and instead of io.EOF an error if that is not the content promised:
// so only who has read to io.EOF has verified content. An error is final. It is for one goroutine, but for Count.
type Reader struct {
	r    io.Reader
	want digest.Digest
	size int64
	read atomic.Int64
	hash hash.Hash
	err  error
}

// NewReader expects content of the digest, which must have passed CheckDigest, and of the size, or Unknown.
func NewReader(r io.Reader, want digest.Digest, size int64) *Reader {
	return &Reader{r: r, want: want, size: size, hash: want.Algorithm().Hash()}
}

// Read implements io.Reader.
func (v *Reader) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	read := v.read.Add(int64(n))
	switch {
	case v.size >= 0 && read > v.size:
		v.err = fmt.Errorf("content is longer than %d bytes: %w of %s", v.size, ErrDigest, v.want)
	case errors.Is(err, io.EOF):
		v.err = v.atEnd()
	default:
		v.err = err
	}
	return n, v.err
}

func (v *Reader) atEnd() error {
	if read := v.read.Load(); v.size >= 0 && read < v.size {
		return fmt.Errorf("content ends after %d of %d bytes: %w", read, v.size, ErrTruncated)
	}
	if got := digest.NewDigest(v.want.Algorithm(), v.hash); got != v.want {
		return fmt.Errorf("content has digest %s, want %s: %w", got, v.want, ErrDigest)
	}
	return io.EOF
}

// Count is how many bytes have been read. Other goroutines may ask.
func (v *Reader) Count() int64 { return v.read.Load() }

// Err is nil before the first error, io.EOF after verified content, and otherwise what was wrong: the cause of whatever
// error came out of decoders stacked on the reader.
func (v *Reader) Err() error { return v.err }

// Drain reads to the end and returns nil if the content was what it should be.
func (v *Reader) Drain() error {
	if _, err := io.Copy(io.Discard, v); err != nil {
		return err
	}
	return nil
}
