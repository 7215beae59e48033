package cni

import (
	"context"
	"errors"
	"testing"
	"time"

	"criserver/pkg/cni/turns"
)

// A GC plugin that hangs holds a new pod up for no longer than turns.YieldAfter, and is gone when the pod has its turn.
func TestGCYieldsToPods(t *testing.T) {
	o, c, list, _ := newChain(t, "1.1.0", "one")
	o.plugin(t, "one", "exec sleep 1000")
	var tn turns.Turns
	running, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- tn.Collect(context.Background(), func(ctx context.Context) error {
			close(running)
			return c.gc(ctx, list, nil)
		})
	}()
	<-running
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := tn.Enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a pod's turn during GC: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 3*turns.YieldAfter)
	defer cancel()
	leave, err := tn.Enter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("GC: %v, want that it was ended", err)
	}
	leave()
}
