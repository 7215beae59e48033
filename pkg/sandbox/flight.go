package sandbox

import (
	"context"
	"sync"
	"time"
)

// flights joins calls for the same thing: the kubelet repeats RunPodSandbox and CreateContainer after its deadline while
// the first call may still be at work.
type flights[K comparable] struct {
	mu    sync.Mutex
	calls map[K]*call
	// all are the calls under way, for Wait.
	all sync.WaitGroup
}

type call struct {
	done chan struct{}
	id   string
	err  error
}

// do returns the result of fn for the key: of the call in flight, or of a new one. fn runs detached from ctx, with a
// deadline of its own: a caller that gives up leaves the work to the one that comes back for it.
func (f *flights[K]) do(ctx context.Context, key K, limit time.Duration, fn func(context.Context) (string, error)) (string, error) {
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
			c.id, c.err = fn(ctx)
			f.mu.Lock()
			delete(f.calls, key)
			f.mu.Unlock()
			close(c.done)
		}()
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.id, c.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// wait blocks until no call is under way.
func (f *flights[K]) wait() { f.all.Wait() }
