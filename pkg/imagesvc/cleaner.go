package imagesvc

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// cleanEvery is how often it is looked for what nothing needs: layers of containers that are gone, downloads that nobody has
// taken up.
const cleanEvery = 10 * time.Minute

// cleaner runs Collect in the background.
type cleaner struct {
	signal chan struct{}
	end    context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
}

// CleanUp begins to remove in the background what nothing needs, now and then and after each removal of an image, until Close.
// Without it, nothing is removed. The first time is after the delay.
func (s *Service) CleanUp(ctx context.Context, delay time.Duration) {
	c := &s.cleaner
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		return
	}
	ctx, c.end = context.WithCancel(context.WithoutCancel(ctx))
	c.signal = make(chan struct{}, 1)
	signal := c.signal
	c.done.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
			c.wake()
		}
		ticker := time.NewTicker(cleanEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-signal:
			case <-ticker.C:
			}
			if err := s.Collect(ctx); err != nil && ctx.Err() == nil {
				logrus.WithError(err).Warn("not all unused layers could be removed; it is tried again")
			}
		}
	})
}

// wake says that there is something to remove. It does not block.
func (c *cleaner) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.signal <- struct{}{}:
	default: // it runs anyway, or has not begun
	}
}

func (c *cleaner) stop() {
	c.mu.Lock()
	end := c.end
	c.mu.Unlock()
	if end != nil {
		end()
		c.done.Wait()
	}
}
