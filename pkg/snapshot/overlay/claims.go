package overlay

import (
	"context"
	"fmt"
	"sync"
)

// claims lets one operation at a time work on a name, so that no mutex is held across disk work. The zero value
// is ready.
type claims struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// acquire waits until nobody else has the name. The caller ends the claim by calling release once.
func (c *claims) acquire(ctx context.Context, name string) (release func(), err error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("claim %s: %w", name, err)
		}
		c.mu.Lock()
		held, taken := c.held[name]
		if !taken {
			if c.held == nil {
				c.held = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			c.held[name] = mine
			c.mu.Unlock()
			return func() { c.release(name, mine) }, nil
		}
		c.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
		}
	}
}

func (c *claims) release(name string, mine chan struct{}) {
	c.mu.Lock()
	delete(c.held, name)
	c.mu.Unlock()
	close(mine)
}
