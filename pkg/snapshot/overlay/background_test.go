package overlay

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/syncfs"
)

// A stage whose commit failed can be committed again, or aborted.
func TestCommitAfterFailedSync(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	diffID := digest.FromString("layer")
	stage, err := s.Stage(t.Context(), []digest.Digest{diffID})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("disk broken")
	s.syncer.Sync = func(string) error { return broken }
	if err := stage.Commit(t.Context(), snapshot.Usage{}); !errors.Is(err, broken) {
		t.Errorf("commit: %v, want %v", err, broken)
	}
	if _, err := s.Layer(t.Context(), []digest.Digest{diffID}); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("layer that was not synced: %v", err)
	}
	s.syncer.Sync = syncfs.FileSystem
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
