package turns

import (
	"context"
	"fmt"
	"sync"
)

// Slots let one operation at a time work on a pod; the others wait as long as their contexts let them. The zero value is
// ready for use.
type Slots struct {
	mu  sync.Mutex
	all map[string]*slot
}

type slot struct {
	taken chan struct{}
	users int // who holds it or waits
}

// Acquire returns what gives the slot back.
func (s *Slots) Acquire(ctx context.Context, id string) (release func(), err error) {
	s.mu.Lock()
	sl := s.all[id]
	if sl == nil {
		if s.all == nil {
			s.all = map[string]*slot{}
		}
		sl = &slot{taken: make(chan struct{}, 1)}
		s.all[id] = sl
	}
	sl.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if sl.users--; sl.users == 0 {
			delete(s.all, id)
		}
	}
	select {
	case sl.taken <- struct{}{}:
		return func() { <-sl.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for another network operation on the pod: %w", ctx.Err())
	}
}
