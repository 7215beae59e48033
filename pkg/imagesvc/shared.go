package imagesvc

import (
	"context"
	"errors"
	"sync"
)

var (
	// errLeft ends the work of a call that nobody waits for any more.
	errLeft = errors.New("everybody who waited has gone")
	// errClosed ends the work of all calls.
	errClosed = errors.New("image service is closed")
)

// shared joins calls for the same thing. The work is cancelled when the last caller has gone.
type shared[K comparable, V any] struct {
	mu     sync.Mutex
	closed bool
	calls  map[K]*sharedCall[V]
	all    map[*sharedCall[V]]struct{} // those that nobody can join any more included
	work   sync.WaitGroup
}

type sharedCall[V any] struct {
	waiters int // guarded by shared.mu
	cancel  context.CancelCauseFunc
	done    chan struct{}
	value   V
	err     error
}

// do returns what fn returns, for all callers with the key while it runs, and whether it was this caller's fn.
func (s *shared[K, V]) do(ctx context.Context, key K, fn func(context.Context) (V, error)) (V, bool, error) {
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
func (s *shared[K, V]) start(ctx context.Context, key K, fn func(context.Context) (V, error)) *sharedCall[V] {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	c := &sharedCall[V]{cancel: cancel, done: make(chan struct{})}
	if s.calls == nil {
		s.calls, s.all = map[K]*sharedCall[V]{}, map[*sharedCall[V]]struct{}{}
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
func (s *shared[K, V]) forget(key K, c *sharedCall[V]) {
	if s.calls[key] == c {
		delete(s.calls, key)
	}
}

// close cancels all work, refuses more, and waits until none is left.
func (s *shared[K, V]) close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.all {
		c.cancel(errClosed)
	}
	s.mu.Unlock()
	s.work.Wait()
}
