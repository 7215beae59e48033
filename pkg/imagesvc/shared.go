package imagesvc

import (
	"context"
	"errors"
	"sync"
)

// errLeft ends the work of a call that nobody waits for any more.
var errLeft = errors.New("everybody who waited has gone")

// shared joins calls for the same thing. The work is cancelled when the last caller has gone.
type shared[K comparable, V any] struct {
	mu    sync.Mutex
	calls map[K]*sharedCall[V]
}

type sharedCall[V any] struct {
	waiters int // guarded by shared.mu
	cancel  context.CancelCauseFunc
	done    chan struct{}
	value   V
	err     error
}

// do returns what fn returns, for all callers with the key while it runs.
func (s *shared[K, V]) do(ctx context.Context, key K, fn func(context.Context) (V, error)) (V, error) {
	s.mu.Lock()
	if s.calls == nil {
		s.calls = map[K]*sharedCall[V]{}
	}
	c, ok := s.calls[key]
	if !ok {
		work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		c = &sharedCall[V]{cancel: cancel, done: make(chan struct{})}
		s.calls[key] = c
		go func() {
			c.value, c.err = fn(work)
			s.mu.Lock()
			if s.calls[key] == c {
				delete(s.calls, key)
			}
			s.mu.Unlock()
			cancel(nil)
			close(c.done)
		}()
	}
	c.waiters++
	s.mu.Unlock()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	if c.waiters--; c.waiters == 0 {
		if s.calls[key] == c {
			delete(s.calls, key) // a new caller begins anew
		}
		c.cancel(errLeft)
	}
	s.mu.Unlock()
	var none V
	return none, context.Cause(ctx)
}
