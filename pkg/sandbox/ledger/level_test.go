package ledger

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"

	"criserver/pkg/record"
	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/want"
)

// The SELinux level of pods on record is held from the start of a daemon on until the last of them is removed.
func TestLevelIsHeld(t *testing.T) {
	t.Cleanup(selinux.ClearLabels)
	ctx := t.Context()
	db, err := record.Open(ctx, filepath.Join(t.TempDir(), "records.db"), record.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	table, err := record.NewTable[PodStatus](ctx, db, "pods")
	if err != nil {
		t.Fatal(err)
	}
	labels := confine.Labels{Process: "u:r:container_t:s0:c1,c2", Mount: "u:object_r:container_file_t:s0:c1,c2"}
	for _, id := range []string{"a", "b"} {
		st := PodStatus{ID: id, Config: want.Pod{Name: id, Namespace: "n", UID: id}, Phase: PodReady, Labels: labels}
		if err := table.Put(ctx, id, st); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		forget string
		held   bool
	}{{"", true}, {"a", true}, {"b", false}} {
		if c.forget != "" {
			p, err := l.Pod(c.forget)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.ForgetPod(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
		if err := selinux.CheckLabel(labels.Process); errors.Is(err, selinux.ErrMCSAlreadyExists) != c.held {
			t.Errorf("after removal of %q: %v, want it held: %v", c.forget, err, c.held)
		}
	}
}
