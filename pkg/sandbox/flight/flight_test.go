package flight

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestCallersJoin(t *testing.T) {
	var g Group[string]
	var runs atomic.Int32
	enter, leave := make(chan struct{}), make(chan struct{})
	fn := func(context.Context) (string, error) {
		if runs.Add(1) == 1 {
			close(enter)
		}
		<-leave
		return "id", nil
	}
	// The first caller gives up; the work goes on for those who come after.
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := g.Do(ctx, "k", time.Minute, fn)
		gone <- err
	}()
	<-enter
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatalf("err = %v", err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if id, err := g.Do(t.Context(), "k", time.Minute, fn); id != "id" || err != nil {
				t.Errorf("got %q, %v", id, err)
			}
		})
	}
	time.AfterFunc(20*time.Millisecond, func() { close(leave) })
	wg.Wait()
	if n := runs.Load(); n != 1 {
		t.Errorf("%d runs, want 1", n)
	}
	g.Wait()
	if _, err := g.Do(t.Context(), "k", time.Minute, fn); err != nil || runs.Load() != 2 {
		t.Errorf("a call after the flight: %v, %d runs", err, runs.Load())
	}
}

func TestLimit(t *testing.T) {
	var g Group[int]
	_, err := g.Do(t.Context(), 1, 10*time.Millisecond, func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
}
