package syncfs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSyncerJoinsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		s := New("/")
		s.Sync = func(string) error {
			calls.Add(1)
			time.Sleep(time.Second)
			return nil
		}
		var wg sync.WaitGroup
		start := func(n int) {
			for range n {
				wg.Go(func() {
					if err := s.Run(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
		}
		start(1)
		if calls.Load() != 1 {
			t.Fatalf("%d calls, want one that runs", calls.Load())
		}
		start(10) // too late for the running call, together in the next
		wg.Wait()
		if calls.Load() != 2 {
			t.Errorf("%d calls of syncfs for 11 callers, want 2", calls.Load())
		}
	})
}

func TestSyncerTellsErrors(t *testing.T) {
	s := New("/")
	broken := errors.New("disk broken")
	s.Sync = func(string) error { return broken }
	if err := s.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("sync: %v, want %v", err, broken)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.Sync = func(string) error { cancel(); <-t.Context().Done(); return nil }
	if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("sync under a canceled context: %v", err)
	}
}
