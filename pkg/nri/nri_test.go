package nri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/spec"
)

// node is a runtime without containers but those that the test puts in.
type node struct {
	mu         sync.Mutex
	containers map[string]ledger.ContainerStatus
	limited    []string
	limit      func(id string) error
}

func (n *node) Pod(id string) (ledger.PodStatus, error)                    { return ledger.PodStatus{ID: id}, nil }
func (n *node) Pods() []ledger.PodStatus                                   { return []ledger.PodStatus{{ID: "p"}} }
func (n *node) PodNamespaces(string) []specs.LinuxNamespace                { return nil }
func (n *node) ContainerSpec(string) (*specs.Spec, error)                  { return nil, errors.New("none") }
func (n *node) StopContainer(context.Context, string, time.Duration) error { return nil }

func (n *node) Container(id string) (ledger.ContainerStatus, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, ok := n.containers[id]
	if !ok {
		return c, ledger.ErrNotFound
	}
	return c, nil
}

func (n *node) Containers() []ledger.ContainerStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []ledger.ContainerStatus
	for _, c := range n.containers {
		out = append(out, c)
	}
	return out
}

func (n *node) set(id string, phase ledger.ContainerPhase) ledger.ContainerStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := ledger.ContainerStatus{ID: id, PodID: "p", Phase: phase}
	n.containers[id] = c
	return c
}

func (n *node) LimitContainer(_ context.Context, id string, r spec.Resources) error {
	n.mu.Lock()
	n.limited = append(n.limited, fmt.Sprint(id, r.CPUShares))
	n.mu.Unlock()
	if n.limit != nil {
		return n.limit(id)
	}
	return nil
}

// start starts plugins for a node with one pod.
func start(t *testing.T, n *node) (*Plugins, string) {
	t.Helper()
	n.containers = map[string]ledger.ContainerStatus{}
	dir := t.TempDir()
	socket := filepath.Join(dir, "nri.sock")
	p, err := New(Config{Socket: socket, PluginDir: dir, ConfigDir: dir, Registration: 5 * time.Second, Request: time.Second})
	if err == nil {
		err = p.Start(t.Context(), n)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p, socket
}

// watcher is a plugin that keeps what it is told of each container.
type watcher struct {
	mu     sync.Mutex
	told   map[string]string
	synced chan struct{}
	create func()
}

func (w *watcher) note(event, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told[id] += event + " "
}

func (w *watcher) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.told)
}

func (w *watcher) Synchronize(_ context.Context, _ []*api.PodSandbox, all []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, c := range all {
		w.note("listed", c.Id)
	}
	close(w.synced)
	return nil, nil
}

func (w *watcher) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if w.create != nil {
		w.create()
	}
	w.note("create", c.Id)
	return nil, nil, nil
}

func (w *watcher) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	w.note("start", c.Id)
	return nil
}

func (w *watcher) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	w.note("stop", c.Id)
	return nil, nil
}

func (w *watcher) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	w.note("remove", c.Id)
	return nil
}

func connect(t *testing.T, socket, name string, w *watcher, options ...stub.Option) {
	t.Helper()
	w.told, w.synced = map[string]string{}, make(chan struct{})
	s, err := stub.New(w, append(options, stub.WithSocketPath(socket), stub.WithPluginIdx("10"), stub.WithPluginName(name), stub.WithOnClose(func() {}))...)
	if err == nil {
		err = s.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	<-w.synced
}

// empty is a specification with nothing in it.
func empty() *specs.Spec { return &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}} }

// TestConnectWhileThingsHappen connects plugins while containers come and go. Each plugin must learn of each container's beginning
// before anything else, once, and of its end.
func TestConnectWhileThingsHappen(t *testing.T) {
	n := &node{}
	p, socket := start(t, n)
	var watchers []*watcher
	var churn sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	for i := range 4 {
		churn.Go(func() {
			for j := 0; ctx.Err() == nil; j++ {
				live(t, p, n, fmt.Sprintf("c%d-%d", i, j))
			}
		})
	}
	for i := range 8 {
		w := &watcher{}
		connect(t, socket, fmt.Sprint("w", i), w)
		watchers = append(watchers, w)
		for deadline := time.Now().Add(10 * time.Second); w.count() < 20; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("plugin %d was told of %d containers only", i, w.count())
			}
		}
	}
	stop()
	churn.Wait()
	whole, rest := "create start stop remove ", []string{"listed start stop remove ", "listed stop remove ", "listed remove "}
	for i, w := range watchers {
		w.mu.Lock()
		listed := 0
		for id, told := range w.told {
			switch {
			case told == whole:
			case slices.Contains(rest, told):
				listed++
			case told == "remove ": // it had ended already
			default:
				t.Errorf("plugin %d was told of %s: %s", i, id, told)
			}
		}
		t.Logf("plugin %d: %d containers, %d of them listed", i, len(w.told), listed)
		w.mu.Unlock()
	}
}

// live takes a container through its life, as package sandbox does.
func live(t *testing.T, p *Plugins, n *node, id string) {
	ctx := context.Background()
	c := n.set(id, ledger.ContainerCreating)
	if _, err := p.CreateContainer(ctx, c, empty()); err != nil {
		t.Error(err)
	}
	c = n.set(id, ledger.ContainerCreated)
	if err := p.ContainerEvent(ctx, plugin.StartContainer, c); err != nil {
		t.Error(err)
	}
	n.set(id, ledger.ContainerRunning)
	c = n.set(id, ledger.ContainerExited)
	for range 2 { // the second time, nothing is told
		_ = p.ContainerEvent(ctx, plugin.StopContainer, c)
	}
	for range 2 {
		_ = p.ContainerEvent(ctx, plugin.RemoveContainer, c)
	}
	n.mu.Lock()
	delete(n.containers, id)
	n.mu.Unlock()
}

// TestWaitingEnds has events wait for a plugin that hangs and is not to be disconnected: whoever waits goes when its time is over.
func TestWaitingEnds(t *testing.T) {
	n := &node{}
	p, socket := start(t, n)
	release := make(chan struct{})
	defer close(release)
	connect(t, socket, "hangs", &watcher{create: func() { <-release }}, stub.WithFailurePolicy(&api.FailurePolicy{KeepConnected: true}))
	begin := time.Now()
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := p.CreateContainer(ctx, n.set(fmt.Sprint("c", i), ledger.ContainerCreating), empty())
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("err = %v", err)
			}
		})
	}
	all.Wait()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestNothingToTell wants no event of what was never announced, and those of what was there before the start.
func TestNothingToTell(t *testing.T) {
	n := &node{}
	p, socket := start(t, n)
	p.known.load(nil, []ledger.ContainerStatus{n.set("old", ledger.ContainerRunning), n.set("exited", ledger.ContainerExited)})
	w := &watcher{}
	connect(t, socket, "w", w)
	for _, id := range []string{"old", "exited", "unknown"} {
		c := n.set(id, ledger.ContainerRemoving)
		_ = p.ContainerEvent(t.Context(), plugin.StopContainer, c)
		_ = p.ContainerEvent(t.Context(), plugin.RemoveContainer, c)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.told) != 2 || w.told["old"] != "listed stop remove " || w.told["exited"] != "remove " {
		t.Errorf("told: %v", w.told)
	}
}

// TestUpdates wants updates to be made in order, and a failure to be of that update alone.
func TestUpdates(t *testing.T) {
	n := &node{}
	p, _ := start(t, n)
	n.limit = func(id string) error {
		if id == "bad" {
			return errors.New("as the test wants")
		}
		return nil
	}
	n.set("good", ledger.ContainerRunning)
	n.set("bad", ledger.ContainerRunning)
	n.set("new", ledger.ContainerCreating)
	var jobs []*job
	var want []string
	for i := range 50 {
		var updates []*api.ContainerUpdate
		for _, id := range []string{"good", "bad", "new", "none"} {
			u := &api.ContainerUpdate{ContainerId: id}
			u.SetLinuxCPUShares(uint64(i + 2))
			updates = append(updates, u)
			if id == "good" || id == "bad" {
				want = append(want, fmt.Sprint(id, i+2))
			}
		}
		jobs = append(jobs, p.updates.add(updates))
	}
	for _, j := range jobs {
		if err := j.wait(t.Context()); err != nil || len(j.failed) != 3 || j.failed[0].ContainerId != "bad" {
			t.Errorf("%v failed, %v", j.failed, err)
		}
	}
	if got := strings.Join(n.limited, " "); got != strings.Join(want, " ") {
		t.Errorf("updates %s\nwant %s", got, strings.Join(want, " "))
	}
}

// TestSocketIsTaken wants neither a file nor the socket of another runtime to be replaced.
func TestSocketIsTaken(t *testing.T) {
	_, taken := start(t, &node{})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, said := range map[string]string{taken: "somebody else", file: "no socket"} {
		p, err := New(Config{Socket: path, PluginDir: t.TempDir(), ConfigDir: t.TempDir(), Registration: time.Second, Request: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Start(t.Context(), &node{}); err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("%v does not say %q", err, said)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if info, err := os.Lstat(path); err != nil || path == taken && info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}
