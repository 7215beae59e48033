// Package claim lets one operation at a time work on a name, so that no mutex is held across disk work.
package claim

import (
	"context"
	"fmt"
	"sync"
)

// Claims are the names that are being worked on. The zero value is ready.
type Claims struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// Acquire waits until nobody else has the name. The caller ends the claim by calling release once.
func (c *Claims) Acquire(ctx context.Context, name string) (release func(), err error) {
	for {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("claim %s: %w", name, context.Cause(ctx))
		}
		c.mu.Lock()
		held, taken := c.held[name]
		if !taken {
			release = c.take(name)
		}
		c.mu.Unlock()
		if !taken {
			return release, nil
		}
		select {
		case <-held:
		case <-ctx.Done():
		}
	}
}

// Try claims a name that nobody has. It does not wait.
func (c *Claims) Try(name string) (release func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.held[name]; taken {
		return nil, false
	}
	return c.take(name), true
}

// take needs the lock.
func (c *Claims) take(name string) (release func()) {
	if c.held == nil {
		c.held = map[string]chan struct{}{}
	}
	mine := make(chan struct{})
	c.held[name] = mine
	return func() {
		c.mu.Lock()
		delete(c.held, name)
		c.mu.Unlock()
		close(mine)
	}
}
