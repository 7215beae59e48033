package flight

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestCallersJoin(t *testing.T) {
	var g Group[string, string]
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
	var g Group[int, string]
	_, err := g.Do(t.Context(), 1, 10*time.Millisecond, func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
}

func TestStageIsTold(t *testing.T) {
	var g Group[int, string]
	staged, done := make(chan struct{}), make(chan struct{})
	go func() {
		<-staged
		time.AfterFunc(20*time.Millisecond, func() { close(done) })
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	_, err := g.Do(ctx, 1, time.Minute, func(ctx context.Context) (string, error) {
		Stage(ctx, "it waits for x")
		close(staged)
		<-done
		return "", nil
	})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "it waits for x") {
		t.Errorf("err = %v", err)
	}
	g.Wait()
	Stage(t.Context(), "of no call")
}

func TestCallsEnd(t *testing.T) {
	var g Group[int, string]
	cause := errors.New("why")
	wait := func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", context.Cause(ctx)
	}
	results := make(chan error, 3)
	for key := range 2 {
		go func() {
			_, err := g.Do(t.Context(), key, time.Minute, wait)
			results <- err
		}()
	}
	for len(keys(&g)) < 2 {
		time.Sleep(time.Millisecond)
	}
	g.Cancel(7, cause) // nobody
	g.Cancel(0, cause)
	if err := <-results; !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
	select {
	case err := <-results:
		t.Errorf("the other call ended too: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	g.End(cause)
	if err := <-results; !errors.Is(err, cause) {
		t.Errorf("ended: %v", err)
	}
	if _, err := g.Do(t.Context(), 9, time.Minute, wait); !errors.Is(err, cause) {
		t.Errorf("after the end: %v", err)
	}
	g.Wait()
}

func keys(g *Group[int, string]) (out []int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k := range g.calls {
		out = append(out, k)
	}
	return out
}
