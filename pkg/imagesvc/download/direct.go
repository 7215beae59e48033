package download

import (
	"context"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/verify"
)

// ErrNotWritten says that a blob was too small to be written to the disk; it must be opened again to be had again.
var ErrNotWritten = errors.New("blob was not written to the disk")

// direct opens a blob that is read as it comes.
func direct(ctx context.Context, d ocispec.Descriptor, origin Origin) (*Blob, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	part, err := origin(ctx, 0, d.Size)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("download %s: %w", d.Digest, err)
	}
	b := &Blob{
		desc: d, part: part, cancel: cancel, release: func() {}, parts: []Part{part},
	}
	b.Reader = verify.NewReader(stream{b}, d.Digest, d.Size)
	return b, nil
}

// stream reads the part of a blob that is read as it comes.
type stream struct{ blob *Blob }

func (s stream) Read(p []byte) (int, error) {
	n, err := s.blob.part.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.blob.mu.Lock()
		s.blob.err = err
		s.blob.mu.Unlock()
	}
	return n, err
}
