// Package flight joins calls for the same thing.
package flight

import (
	"context"
	"sync"
	"time"
)

// Group joins calls with the same key: the kubelet repeats RunPodSandbox and CreateContainer after its deadline while
// the first call may still be at work.
type Group[K comparable] struct {
	mu    sync.Mutex
	calls map[K]*call
	all   sync.WaitGroup
}

type call struct {
	done   chan struct{}
	result string
	err    error
}

// Do returns the result of fn for the key: of the call in flight, or of a new one. fn runs detached from ctx, with a
// deadline of its own: a caller that gives up leaves the work to the one that comes back for it.
func (f *Group[K]) Do(ctx context.Context, key K, limit time.Duration, fn func(context.Context) (string, error)) (string, error) {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[K]*call{}
	}
	c, ok := f.calls[key]
	if !ok {
		c = &call{done: make(chan struct{})}
		f.calls[key] = c
		f.all.Add(1)
		go func() {
			defer f.all.Done()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
			defer cancel()
			c.result, c.err = fn(ctx)
			f.mu.Lock()
			delete(f.calls, key)
			f.mu.Unlock()
			close(c.done)
		}()
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// Wait blocks until no call is under way.
func (f *Group[K]) Wait() { f.all.Wait() }
