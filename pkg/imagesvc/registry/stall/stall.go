// Package stall ends responses that nothing comes of any more.
package stall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"criserver/pkg/imagesvc/registry/failure"
)

// watched is a body that gives up when nothing comes for some time. Time in which nobody reads does not count.
type watched struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
}

// Watch returns a body that cancels with failure.ErrStalled when a read takes longer than the limit. ctx is the one of the request, and
// cancel is its; Close calls it too.
func Watch(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, limit time.Duration) io.ReadCloser {
	w := &watched{ctx: ctx, cancel: cancel, body: body, limit: limit}
	w.timer = time.AfterFunc(limit, func() { cancel(fmt.Errorf("nothing came for %v: %w", limit, failure.ErrStalled)) })
	w.timer.Stop()
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.body.Read(p)
	w.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && w.ctx.Err() != nil {
		err = context.Cause(w.ctx)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.body.Close()
}
