// Package flight joins calls for the same thing.
package flight

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Group joins calls with the same key: the kubelet repeats RunPodSandbox and CreateContainer after its deadline while
// the first call may still be at work. The zero value is ready.
type Group[K comparable, V any] struct {
	mu    sync.Mutex
	calls map[K]*call[V]
	ended error // why no call may go on; nil while they may
	all   sync.WaitGroup
}

type call[V any] struct {
	done   chan struct{}
	cancel context.CancelCauseFunc
	result V
	err    error
	stage  stage
}

// stage is what a call does now.
type stage struct {
	mu   sync.Mutex
	text string
}

type stageKey struct{}

// Stage says what the call that ctx belongs to does now, for callers that give up on it.
func Stage(ctx context.Context, text string) {
	if s, ok := ctx.Value(stageKey{}).(*stage); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.text = text
	}
}

// Do returns the result of fn for the key: of the call in flight, or of a new one. fn runs detached from ctx, with a
// deadline of its own: a caller that gives up leaves the work to the one that comes back for it, and is told how far it is.
func (f *Group[K, V]) Do(ctx context.Context, key K, limit time.Duration, fn func(context.Context) (V, error)) (V, error) {
	c := f.join(ctx, key, limit, fn)
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
		c.stage.mu.Lock()
		defer c.stage.mu.Unlock()
		var none V
		if c.stage.text == "" {
			return none, context.Cause(ctx)
		}
		return none, fmt.Errorf("it is not done yet: %s: %w", c.stage.text, context.Cause(ctx))
	}
}

func (f *Group[K, V]) join(ctx context.Context, key K, limit time.Duration, fn func(context.Context) (V, error)) *call[V] {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.calls[key]; ok {
		return c
	}
	if f.calls == nil {
		f.calls = map[K]*call[V]{}
	}
	c := &call[V]{done: make(chan struct{})}
	run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	c.cancel = cancel
	if f.ended != nil {
		cancel(f.ended)
	}
	f.calls[key] = c
	f.all.Go(func() {
		defer cancel(nil)
		run, stop := context.WithTimeout(context.WithValue(run, stageKey{}, &c.stage), limit)
		defer stop()
		c.result, c.err = fn(run)
		f.mu.Lock()
		delete(f.calls, key)
		f.mu.Unlock()
		close(c.done)
	})
	return c
}

// Cancel ends the call for the key, if there is one.
func (f *Group[K, V]) Cancel(key K, cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.calls[key]; ok {
		c.cancel(cause)
	}
}

// End ends all calls, also those to come.
func (f *Group[K, V]) End(cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = cause
	for _, c := range f.calls {
		c.cancel(cause)
	}
}

// Wait blocks until no call is under way of those that have begun.
func (f *Group[K, V]) Wait() {
	f.mu.Lock()   // a call that begins is counted by now or comes later
	f.mu.Unlock() //nolint:staticcheck // SA2001: the order is the purpose
	f.all.Wait()
}
