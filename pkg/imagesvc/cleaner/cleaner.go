// Package cleaner runs a clean-up in the background, now and then and whenever there may be something to do.
package cleaner

import (
	"context"
	"sync"
	"time"
)

// Cleaner is one clean-up. The zero value is ready to be started.
type Cleaner struct {
	mu     sync.Mutex
	signal chan struct{} // capacity 1: a wake while one is pending says nothing new
	end    context.CancelFunc
	done   sync.WaitGroup
}

// Start begins, and repeats every so often and after each Wake, until Stop. One run at a time is under way. A second Start does
// nothing. ctx gives values; it does not end the cleaner.
func (c *Cleaner) Start(ctx context.Context, every time.Duration, run func(context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		return
	}
	ctx, c.end = context.WithCancel(context.WithoutCancel(ctx))
	c.signal = make(chan struct{}, 1)
	signal := c.signal
	c.done.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			run(ctx)
			select {
			case <-ctx.Done():
				return
			case <-signal:
			case <-ticker.C:
			}
		}
	})
}

// Wake says that there is something to do. It does not block, and does nothing before Start.
func (c *Cleaner) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

// WakeAfter is Wake if there was an error: what was begun is in the way.
func (c *Cleaner) WakeAfter(err error) {
	if err != nil {
		c.Wake()
	}
}

// Stop ends the run under way, by its context, and waits for it.
func (c *Cleaner) Stop() {
	c.mu.Lock()
	end := c.end
	c.mu.Unlock()
	if end != nil {
		end()
		c.done.Wait()
	}
}
