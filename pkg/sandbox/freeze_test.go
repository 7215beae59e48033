package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// ticks is how many lines a container has written.
func (f *fixture) ticks(id string) int {
	f.t.Helper()
	info, err := os.Stat(filepath.Join(f.bundles.RootFS(id), "ticks"))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return int(info.Size())
}

// moves tells whether a container's processes run: it waits for the next tick, no longer than d.
func (f *fixture) moves(id string, d time.Duration) bool {
	f.t.Helper()
	before := f.ticks(id)
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f.ticks(id) > before {
			return true
		}
	}
	return false
}

func TestFreeze(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	const ticking = "while :; do echo >>/ticks; sleep 0.01; done"
	id := f.start(pod, script("a", ticking))
	if !f.moves(id, 5*time.Second) {
		t.Fatal("the container does not tick")
	}
	thaw, err := f.Freeze(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !f.status(id).Frozen || f.moves(id, 200*time.Millisecond) {
		t.Error("a frozen container runs")
	}
	if _, err := f.Freeze(t.Context(), id); !errors.Is(err, ErrState) {
		t.Errorf("frozen twice: %v", err)
	}
	for range 2 {
		if err := thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if f.status(id).Frozen || !f.moves(id, 5*time.Second) {
		t.Error("it does not go on")
	}
	if _, err := f.Freeze(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	f.reopen(nil)
	if f.status(id).Frozen || !f.moves(id, 5*time.Second) {
		t.Error("it does not go on after a restart of the daemon")
	}
	if _, err := f.Freeze(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := f.StopContainer(t.Context(), id, time.Second); err != nil {
		t.Errorf("stop of a frozen container: %v", err)
	}
	if thaw, err = f.Freeze(t.Context(), id); err != nil || thaw(t.Context()) != nil {
		t.Errorf("freeze of an exited container: %v", err)
	}
}
