package ledger

import (
	"context"
	"fmt"
)

// slot is held by the one operation under way on a pod or container that excludes others.
type slot struct {
	ops  chan struct{}
	what string
}

func newSlot(what string) slot { return slot{make(chan struct{}, 1), what} }

// Acquire takes the operation slot, or tells who holds it up when ctx ends.
func (s slot) Acquire(ctx context.Context) error {
	select {
	case s.ops <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s has another operation under way: %w", s.what, context.Cause(ctx))
	}
}

// Release gives the slot back.
func (s slot) Release() { <-s.ops }
