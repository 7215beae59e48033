package netcare

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"criserver/pkg/cni"
	"criserver/pkg/record"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/want"
)

// network notes what it is asked for. Its collections hang, and its pods are not as they were made.
type network struct {
	mu      sync.Mutex
	live    [][]string
	checked []string
}

func (n *network) GC(ctx context.Context, live []string) error {
	n.mu.Lock()
	n.live = append(n.live, slices.Sorted(slices.Values(live)))
	n.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (n *network) Check(_ context.Context, p cni.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.checked = append(n.checked, p.ID)
	return errors.New("it is not")
}

// took returns what was asked for since the last call: one line a collection, and the pods that were checked.
func (n *network) took() (collections []string, checked string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, ids := range n.live {
		collections = append(collections, strings.Join(ids, " "))
	}
	slices.Sort(n.checked)
	checked = strings.Join(n.checked, " ")
	n.live, n.checked = nil, nil
	return collections, checked
}

// pods is a ledger with a pod in each phase, named by it, and one, node, on the node's network.
func pods(t *testing.T) *ledger.Ledger {
	t.Helper()
	db, err := record.Open(t.Context(), filepath.Join(t.TempDir(), "records.db"), record.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := ledger.Open(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	for id, phase := range map[string]ledger.PodPhase{
		"creating": ledger.PodCreating, "ready": ledger.PodReady, "removing": ledger.PodRemoving, "stopped": ledger.PodStopped, "node": ledger.PodReady,
	} {
		st := ledger.PodStatus{ID: id, Phase: phase, Config: want.Pod{Name: id}}
		if id == "node" {
			st.Config.Namespaces.Network = want.NamespaceNode
		}
		p, err := l.AddPod(st)
		if err != nil {
			t.Fatal(err)
		}
		p.Release()
	}
	return l
}

// expect lets time pass, and says what is asked for meanwhile.
func (n *network) expect(t *testing.T, d time.Duration, collections []string, checked string) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
	if live, pods := n.took(); !slices.Equal(live, collections) || pods != checked {
		t.Errorf("after %s: collected with %q, checked %q; want %q and %q", d, live, pods, collections, checked)
	}
}

// TestCollect has garbage given back each hour, whatever came of it before, with all pods named that may have a network.
func TestCollect(t *testing.T) {
	l := pods(t)
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			Care{Network: n, Ledger: l}.Run(ctx)
		}()
		n.expect(t, gcInterval-time.Second, nil, "")
		n.expect(t, time.Second, []string{"creating node ready removing"}, "")
		p, err := l.Pod("ready")
		if err != nil {
			t.Fatal(err)
		}
		l.UpdatePod(p, func(st *ledger.PodStatus) { st.Phase = ledger.PodStopped })
		n.expect(t, gcInterval, []string{"creating node removing"}, "")
		cancel() // in the middle
		<-done
	})
}

// TestCheck has the networks of ready pods looked at in their time.
func TestCheck(t *testing.T) {
	l := pods(t)
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			Care{Network: n, Ledger: l, CheckEvery: 7 * time.Minute}.Run(ctx)
		}()
		n.expect(t, 7*time.Minute-time.Second, nil, "")
		n.expect(t, time.Second, nil, "ready")
		n.expect(t, 7*time.Minute, nil, "ready")
		p, err := l.Pod("ready")
		if err != nil {
			t.Fatal(err)
		}
		l.UpdatePod(p, func(st *ledger.PodStatus) { st.Phase = ledger.PodStopped })
		n.expect(t, 7*time.Minute, nil, "")
		cancel()
		<-done
	})
}
