package turns

import (
	"context"
	"testing"
	"time"
)

// A GC that waits for a pod that takes long keeps no other pod from its turn.
func TestGCWaitsForPods(t *testing.T) {
	var tn Turns
	slow, err := tn.Enter(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	collected := make(chan error, 1)
	go func() {
		collected <- tn.Collect(context.Background(), func(context.Context) error { return nil })
	}()
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		leave, err := tn.Enter(ctx)
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
