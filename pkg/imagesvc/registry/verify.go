package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// verifier reads content and ends with an error unless it has its size and digest.
type verifier struct {
	body io.ReadCloser
	desc ocispec.Descriptor
	hash digest.Digester
	left int64
	err  error
	// guard closes the body when nothing comes.
	guard   *time.Timer
	timeout time.Duration
	stalled chan struct{}
	unwatch func() bool
}

// verify wraps a body. Cancelling ctx, or a time without a byte, ends a read that blocks.
func verify(ctx context.Context, body io.ReadCloser, desc ocispec.Descriptor, noProgress time.Duration) io.ReadCloser {
	v := &verifier{body: body, desc: desc, left: desc.Size, timeout: noProgress, stalled: make(chan struct{})}
	if err := desc.Digest.Validate(); err != nil {
		v.err = fmt.Errorf("%w: %w", ErrDigest, err)
	} else {
		v.hash = desc.Digest.Algorithm().Digester()
	}
	v.guard = time.AfterFunc(noProgress, func() {
		close(v.stalled)
		_ = body.Close()
	})
	v.unwatch = context.AfterFunc(ctx, func() { _ = body.Close() })
	return v
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	v.guard.Reset(v.timeout)
	n, err := v.body.Read(p)
	_, _ = v.hash.Hash().Write(p[:n])
	v.left -= int64(n)
	switch {
	case v.left < 0:
		v.err = fmt.Errorf("%s has more than its %d bytes: %w", v.desc.Digest, v.desc.Size, ErrDigest)
	case err == nil:
		return n, nil
	case v.isStalled():
		v.err = fmt.Errorf("%s: no byte for %s: %w", v.desc.Digest, v.timeout, ErrStalled)
	case errors.Is(err, io.ErrUnexpectedEOF), err == io.EOF && v.left > 0:
		v.err = fmt.Errorf("%s: %d of %d bytes came: %w", v.desc.Digest, v.desc.Size-v.left, v.desc.Size, ErrTruncated)
	case err != io.EOF:
		v.err = fmt.Errorf("read %s: %w", v.desc.Digest, err)
	case v.hash.Digest() != v.desc.Digest:
		v.err = fmt.Errorf("%s came as %s: %w", v.desc.Digest, v.hash.Digest(), ErrDigest)
	default:
		v.err = io.EOF
	}
	return n, v.err
}

func (v *verifier) isStalled() bool {
	select {
	case <-v.stalled:
		return true
	default:
		return false
	}
}

func (v *verifier) Close() error {
	v.guard.Stop()
	v.unwatch()
	return v.body.Close()
}
