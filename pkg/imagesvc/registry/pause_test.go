package registry

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"criserver/pkg/imagesvc/registry/hosts"
)

// The wait before the rest of a body is asked for has bounds, and is another each time.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Config{Backoff: time.Second}
		for attempt, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, hosts.MaxBackoff, hosts.MaxBackoff} {
			seen := map[time.Duration]bool{}
			for range 100 {
				start := time.Now()
				if err := c.pause(t.Context(), attempt); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				if took < want*4/5 || took > want*6/5 {
					t.Errorf("attempt %d waits %v, want about %v", attempt, took, want)
				}
				seen[took] = true
			}
			if len(seen) < 50 {
				t.Errorf("attempt %d: a hundred waits have %d lengths", attempt, len(seen))
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		cancel(enough)
		if err := c.pause(ctx, 0); !errors.Is(err, enough) {
			t.Errorf("cancelled: %v", err)
		}
	})
}
