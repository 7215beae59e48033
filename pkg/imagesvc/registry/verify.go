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
	// guard cancels the request when nothing comes. Closing the body would race with a read of it.
	ctx     context.Context //nolint:containedctx // the request's, which lives as long as its body
	cancel  context.CancelCauseFunc
	guard   *time.Timer
	timeout time.Duration
}

// verify wraps the body of a request that was made with ctx, which cancel cancels.
func verify(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, desc ocispec.Descriptor, noProgress time.Duration) io.ReadCloser {
	v := &verifier{body: body, desc: desc, left: desc.Size, timeout: noProgress, ctx: ctx, cancel: cancel}
	if err := desc.Digest.Validate(); err != nil {
		v.err = fmt.Errorf("%w: %w", ErrDigest, err)
	} else {
		v.hash = desc.Digest.Algorithm().Digester()
	}
	v.guard = time.AfterFunc(noProgress, func() { cancel(ErrStalled) })
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
	case errors.Is(context.Cause(v.ctx), ErrStalled):
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

func (v *verifier) Close() error {
	v.guard.Stop()
	err := v.body.Close()
	v.cancel(nil)
	return err
}
