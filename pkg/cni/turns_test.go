package cni

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A GC plugin that hangs holds a new pod up for no longer than yieldAfter, and is gone when the pod has its turn.
func TestGCYieldsToPods(t *testing.T) {
	o, c, list, _ := newChain(t, "1.1.0", "one")
	o.plugin(t, "one", "exec sleep 1000")
	var tn turns
	running, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- tn.collect(context.Background(), func(ctx context.Context) error {
			close(running)
			return c.gc(ctx, list, nil)
		})
	}()
	<-running
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := tn.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a pod's turn during GC: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 3*yieldAfter)
	defer cancel()
	leave, err := tn.enter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("GC: %v, want that it was ended", err)
	}
	leave()
}

// A GC that waits for a pod that takes long keeps no other pod from its turn.
func TestGCWaitsForPods(t *testing.T) {
	var tn turns
	slow, err := tn.enter(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	collected := make(chan error, 1)
	go func() {
		collected <- tn.collect(context.Background(), func(context.Context) error { return nil })
	}()
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		leave, err := tn.enter(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		leave()
	}
	select {
	case <-collected:
		t.Fatal("GC ran while a pod was being set up")
	case <-time.After(3 * quietDelay):
	}
	slow()
	if err := <-collected; err != nil {
		t.Error(err)
	}
}
