// Package shared joins calls for the same thing that come at the same time.
package shared

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

var (
	// errLeft ends the work of a call that nobody waits for any more.
	errLeft = errors.New("everybody who waited has gone")
	// errClosed ends the work of all calls.
	errClosed = fmt.Errorf("criserver stops: %w", context.Canceled)
)

// Calls joins calls with the same key. The work is cancelled when the last caller has gone. The zero value is ready.
type Calls[K comparable, V any] struct {
	mu     sync.Mutex
	closed bool
	calls  map[K]*call[V]
	all    map[*call[V]]struct{} // those that nobody can join any more included
	work   sync.WaitGroup
}

type call[V any] struct {
	waiters int // guarded by Calls.mu
	cancel  context.CancelCauseFunc
	done    chan struct{}
	value   V
	err     error
}

// Do returns what fn returns, for all callers with the key while it runs, and whether it was this caller's fn.
func (s *Calls[K, V]) Do(ctx context.Context, key K, fn func(context.Context) (V, error)) (V, bool, error) {
	var none V
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return none, true, errClosed
	}
	c, joined := s.calls[key]
	if !joined {
		c = s.start(ctx, key, fn)
	}
	c.waiters++
	s.mu.Unlock()
	select {
	case <-c.done:
		return c.value, !joined, c.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	if c.waiters--; c.waiters == 0 {
		s.forget(key, c) // a new caller begins anew
		c.cancel(errLeft)
	}
	s.mu.Unlock()
	return none, !joined, context.Cause(ctx)
}

// start needs the lock.
func (s *Calls[K, V]) start(ctx context.Context, key K, fn func(context.Context) (V, error)) *call[V] {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	c := &call[V]{cancel: cancel, done: make(chan struct{})}
	if s.calls == nil {
		s.calls, s.all = map[K]*call[V]{}, map[*call[V]]struct{}{}
	}
	s.calls[key] = c
	s.all[c] = struct{}{}
	s.work.Go(func() {
		c.value, c.err = fn(work)
		s.mu.Lock()
		s.forget(key, c)
		delete(s.all, c)
		s.mu.Unlock()
		cancel(nil)
		close(c.done)
	})
	return c
}

// forget needs the lock.
func (s *Calls[K, V]) forget(key K, c *call[V]) {
	if s.calls[key] == c {
		delete(s.calls, key)
	}
}

// Close cancels all work, refuses more, and waits until none is left.
func (s *Calls[K, V]) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.all {
		c.cancel(errClosed)
	}
	s.mu.Unlock()
	s.work.Wait()
}

// Waiters is how many callers wait for the calls whose keys match.
func (s *Calls[K, V]) Waiters(match func(K) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for key, c := range s.calls {
		if match(key) {
			n += c.waiters
		}
	}
	return n
}
