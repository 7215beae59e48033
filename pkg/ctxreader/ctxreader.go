// Package ctxreader lets a long copy end with its context.
package ctxreader

import (
	"context"
	"io"
)

// New returns a reader that ends reading, between two reads, with the cause of the context's end.
func New(ctx context.Context, r io.Reader) io.Reader { return reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
