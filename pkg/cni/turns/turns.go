// Package turns keeps operations on the network apart that must not run at the same time: two on one pod, and plugins' GC
// and a pod that comes or goes.
package turns

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// YieldAfter is how long a GC of plugins may go on when a pod waits for it.
	YieldAfter = 5 * time.Second
	// quietTries and quietDelay are how long a GC waits for a moment in which no pod comes or goes.
	quietTries = 600
	quietDelay = 100 * time.Millisecond
)

// Turns keep GC of plugins apart from ADD and DEL, as CNI's SPEC.md (Lifecycle & Ordering) asks for. Pods go first: a GC
// begins only when no other operation runs, and is ended when one has waited for long. The next GC does what is left.
// The zero value is ready for use.
type Turns struct {
	mu         sync.Mutex
	operations int
	gc         *collection // nil if none runs
}

type collection struct {
	done   chan struct{}
	wanted sync.Once
	cancel context.CancelFunc
}

// Enter begins an ADD or a DEL, which ends with leave.
func (t *Turns) Enter(ctx context.Context) (leave func(), err error) {
	for {
		gc := t.begin()
		if gc == nil {
			return t.leave, nil
		}
		gc.wanted.Do(func() { time.AfterFunc(YieldAfter, gc.cancel) })
		select {
		case <-gc.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for garbage collection of the network: %w", ctx.Err())
		}
	}
}

// begin counts an operation, or returns the GC that it has to wait for.
func (t *Turns) begin() *collection {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gc == nil {
		t.operations++
	}
	return t.gc
}

func (t *Turns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.operations--
}

// Collect runs a GC with a context that ends when it has to yield.
func (t *Turns) Collect(ctx context.Context, gc func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &collection{done: make(chan struct{}), cancel: cancel}
	for try := 1; !t.claim(c); try++ {
		if try == quietTries {
			return fmt.Errorf("collect garbage of the network: pods come and go all the time; the next collection tries again")
		}
		select {
		case <-time.After(quietDelay):
		case <-ctx.Done():
			return fmt.Errorf("wait for a moment without pods that come or go: %w", ctx.Err())
		}
	}
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.gc = nil
		close(c.done)
	}()
	return gc(ctx)
}

func (t *Turns) claim(c *collection) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.operations > 0 || t.gc != nil {
		return false
	}
	t.gc = c
	return true
}
