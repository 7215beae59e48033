// Package stall ends responses that nothing comes of any more.
package stall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"criserver/pkg/imagesvc/registry/failure"
)

// Limits of an exchange, which is a request, a token asked for, and the request again, with the pauses in between.
const (
	silences = 3   // each of the three may be silent for the limit
	pauses   = 240 // backoffs; by default they are a minute, and no request waits longer at a server's wish
)

// Exchange returns the context of a request with all that belongs to it, which cancels with failure.ErrStalled unless
// answered or cancel is called within some limits and backoffs: who sends a byte now and then is not waited for. The
// caller must call cancel.
func Exchange(parent context.Context, limit, backoff time.Duration) (ctx context.Context, cancel context.CancelCauseFunc, answered func()) {
	ctx, abandon := context.WithCancelCause(parent)
	longest := silences*limit + pauses*backoff
	deadline := time.AfterFunc(longest, func() { abandon(fmt.Errorf("no answer for %v: %w", longest, failure.ErrStalled)) })
	cancel = func(cause error) {
		deadline.Stop()
		abandon(cause)
	}
	return ctx, cancel, func() { deadline.Stop() }
}

// watched is a body that gives up when too little comes for some time. Time in which nobody reads does not count.
type watched struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	limit  time.Duration
	least  int64
	timer  *time.Timer
	waited time.Duration // since there was progress
	got    atomic.Int64  // in that time
}

// Watch returns a body that cancels with failure.ErrStalled when reads have waited for the limit and got fewer than least bytes;
// any byte is progress if that is 1 or less. ctx is the one of the request, and cancel is its; Close calls it too.
func Watch(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, limit time.Duration, least int64) io.ReadCloser {
	w := &watched{ctx: ctx, cancel: cancel, body: body, limit: limit, least: max(least, 1)}
	w.timer = time.AfterFunc(limit, func() {
		what := "nothing"
		if n := w.got.Load(); n > 0 {
			what = fmt.Sprintf("no more than %d bytes", n)
		}
		cancel(fmt.Errorf("%s came in %v: %w", what, limit, failure.ErrStalled))
	})
	w.timer.Stop()
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	began := time.Now()
	w.timer.Reset(w.limit - w.waited)
	n, err := w.body.Read(p)
	w.timer.Stop()
	w.waited += time.Since(began)
	if w.got.Add(int64(n)) >= w.least {
		w.waited = 0
		w.got.Store(0)
	}
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
