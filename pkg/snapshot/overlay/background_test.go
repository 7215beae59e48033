package overlay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
)

func TestSyncerJoinsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		s := newSyncer("/")
		s.sync = func(string) error {
			calls.Add(1)
			time.Sleep(time.Second)
			return nil
		}
		var wg sync.WaitGroup
		start := func(n int) {
			for range n {
				wg.Go(func() {
					if err := s.run(t.Context()); err != nil {
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
	s := newSyncer("/")
	broken := errors.New("disk broken")
	s.sync = func(string) error { return broken }
	if err := s.run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("sync: %v, want %v", err, broken)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.sync = func(string) error { cancel(); <-t.Context().Done(); return nil }
	if err := s.run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("sync under a canceled context: %v", err)
	}
}

// A stage whose commit failed can be committed again, or aborted.
func TestCommitAfterFailedSync(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	diffID := digest.FromString("layer")
	stage, err := s.Stage(t.Context(), []digest.Digest{diffID})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("disk broken")
	s.syncer.sync = func(string) error { return broken }
	if err := stage.Commit(t.Context(), snapshot.Usage{}); !errors.Is(err, broken) {
		t.Errorf("commit: %v, want %v", err, broken)
	}
	if _, err := s.Layer(t.Context(), []digest.Digest{diffID}); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("layer that was not synced: %v", err)
	}
	s.syncer.sync = syncfs
	if err := stage.Commit(t.Context(), snapshot.Usage{}); err != nil {
		t.Errorf("second commit: %v", err)
	}
	if err := stage.Abort(t.Context()); err != nil {
		t.Errorf("abort after commit: %v", err)
	}
	if _, err := s.Layer(t.Context(), []digest.Digest{diffID}); err != nil {
		t.Errorf("layer after abort of its committed stage: %v", err)
	}
}
