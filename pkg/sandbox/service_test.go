package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/cni"
	"criserver/pkg/record"
	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/monitor/launch"
	"criserver/pkg/sandbox/want"
	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/overlay"
)

// crimonitor is the real program, built once.
var crimonitor = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "crimonitor")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "crimonitor")
	cmd := exec.Command("go", "build", "-tags", "seccomp osusergo netgo", "-ldflags", "-extldflags -static", "-o", path,
		"criserver/cmd/crimonitor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build crimonitor: %w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := crimonitor(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// network is a double whose nil functions do nothing.
type network struct {
	setup    func(ctx context.Context, p cni.Pod) (cni.Result, error)
	teardown func(ctx context.Context, p cni.Pod) error

	mu    sync.Mutex
	calls []string
}

func (n *network) note(call, id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, call+" "+id)
}

func (n *network) Setup(ctx context.Context, p cni.Pod) (cni.Result, error) {
	n.note("add", p.ID)
	if n.setup != nil {
		return n.setup(ctx, p)
	}
	return cni.Result{IPs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}}, nil
}

func (n *network) Teardown(ctx context.Context, p cni.Pod) error {
	n.note("del", p.ID)
	if n.teardown != nil {
		return n.teardown(ctx, p)
	}
	return nil
}

func (n *network) GC(context.Context, []string) error { return nil }

func (n *network) Check(context.Context, cni.Pod) error { return nil }

// testCgroup is this run's own: another one may be under way.
var testCgroup = fmt.Sprintf("/criserver-test-sandbox-%d", os.Getpid())

// fixture is a service with real snapshots, real records and a real crimonitor.
type fixture struct {
	*Service
	t       *testing.T
	dir     string
	net     *network
	db      *record.DB
	image   want.Image
	overlay *overlay.Snapshotter
	pods    int
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("pods need root")
	}
	f := &fixture{t: t, dir: t.TempDir(), net: &network{}}
	var err error
	if f.overlay, err = overlay.New(filepath.Join(f.dir, "snapshots"), overlay.Options{}); err != nil {
		t.Fatal(err)
	}
	f.image = f.busybox()
	f.open()
	t.Cleanup(f.close)
	return f
}

// busybox makes a layer with busybox-static in it.
func (f *fixture) busybox() want.Image {
	f.t.Helper()
	diffID := digest.FromString("busybox")
	stage, err := f.overlay.Stage(f.t.Context(), []digest.Digest{diffID})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.Mkdir(filepath.Join(stage.Dir(), d), 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		f.t.Fatalf("package busybox-static is needed: %v", err)
	}
	program := filepath.Join(stage.Dir(), "bin", "busybox")
	err = errors.Join(os.WriteFile(program, bin, 0o755),
		os.WriteFile(filepath.Join(stage.Dir(), "etc", "passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644))
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "hostname", "id", "ps", "true", "ls"} {
		err = errors.Join(err, os.Link(program, filepath.Join(stage.Dir(), "bin", applet)))
	}
	if err != nil {
		f.t.Fatal(err)
	}
	if err := stage.Commit(f.t.Context(), snapshot.Usage{}); err != nil {
		f.t.Fatal(err)
	}
	return want.Image{ID: digest.FromString("image").String(), Ref: "busybox@x", Layers: []digest.Digest{diffID},
		Config: ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}}
}

// oneDriver is overlay, whatever the driver.
type oneDriver struct{ *overlay.Snapshotter }

func (d oneDriver) Prepare(ctx context.Context, _, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	return d.Snapshotter.Prepare(ctx, key, layers)
}

// open starts a service on the fixture's directories; crimonitor may be there already.
func (f *fixture) open() {
	f.t.Helper()
	path, err := crimonitor()
	if err != nil {
		f.t.Fatal(err)
	}
	ctx := f.t.Context()
	if f.db, err = record.Open(ctx, filepath.Join(f.dir, "records.db"), record.Options{}); err != nil {
		f.t.Fatal(err)
	}
	state := filepath.Join(f.dir, "state")
	handlers, err := handler.New("", handler.Features{RecursiveReadOnlyMounts: true}, func(context.Context, string) error { return nil }, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	handlers.Probe(ctx)
	f.Service, err = New(ctx, Config{
		Handlers: handlers,
		StateDir: state, CgroupDriver: driver.Cgroupfs, CgroupRoot: testCgroup,
		Monitor: launch.Config{
			Binary: path, Socket: filepath.Join(state, "m.sock"), StateDir: filepath.Join(state, "monitor"),
			Log: filepath.Join(state, "monitor.log"), LogLevel: "debug", Cgroup: testCgroup + "/monitor",
		},
	}, f.db, f.net, oneDriver{f.overlay})
	if err != nil {
		f.t.Fatal(err)
	}
	startCtx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	f.Service.Start(startCtx)
	if err := f.Ready(); err != nil {
		f.t.Fatal(err)
	}
}

// reopen is a restart of the daemon; change may prepare what it finds.
func (f *fixture) reopen(change func()) {
	f.t.Helper()
	f.Stop()
	if err := f.Close(f.t.Context(), false); err != nil {
		f.t.Fatal(err)
	}
	if err := f.db.Close(); err != nil {
		f.t.Fatal(err)
	}
	if change != nil {
		change()
	}
	f.open()
}

// close removes all pods, ends everything, and fails the test if something is left.
func (f *fixture) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, p := range f.Pods() {
		if err := f.RemovePod(ctx, p.ID); err != nil {
			f.t.Error(err)
		}
	}
	if err := f.Close(ctx, true); err != nil {
		f.t.Error(err)
	}
	if err := f.db.Close(); err != nil {
		f.t.Error(err)
	}
	for deadline := time.Now().Add(5 * time.Second); cgroup.Exists(testCgroup) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		cgroup.Prune(testCgroup + "/monitor")
		cgroup.Prune(testCgroup)
	}
	if cgroup.Exists(testCgroup) {
		names, _ := cgroup.Children(testCgroup)
		f.t.Errorf("cgroups are left: %v", names)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), f.dir) {
		f.t.Error("mounts are left")
	}
	for _, dir := range []string{"pods", "containers", "monitor"} {
		if left, _ := os.ReadDir(filepath.Join(f.dir, "state", dir)); len(left) > 0 {
			f.t.Errorf("%s are left: %v", dir, left)
		}
	}
	if left, err := f.overlay.Snapshots(ctx); err != nil || len(left) > 0 {
		f.t.Errorf("snapshots are left: %v, %v", left, err)
	}
	if f.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(f.dir, "state", "monitor.log"))
		f.t.Logf("crimonitor's log:\n%s", log)
	}
}

func (f *fixture) podConfig() want.Pod {
	f.pods++
	name := fmt.Sprintf("p%d", f.pods)
	return want.Pod{Name: name, Namespace: "test", UID: "u" + name, Hostname: name,
		LogDirectory: filepath.Join(f.dir, "logs", name), Namespaces: want.Namespaces{PID: want.NamespaceContainer}}
}

func (f *fixture) runPod(c want.Pod) string {
	f.t.Helper()
	id, err := f.RunPod(f.t.Context(), c)
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

func script(name, text string) want.Container {
	return want.Container{Name: name, ImageName: "busybox", Command: []string{"sh", "-c", text}, LogPath: name + ".log",
		Namespaces: want.Namespaces{PID: want.NamespaceContainer}}
}

func (f *fixture) start(podID string, c want.Container) string {
	f.t.Helper()
	id, err := f.CreateContainer(f.t.Context(), podID, c, f.image)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.StartContainer(f.t.Context(), id); err != nil {
		f.t.Fatal(err)
	}
	return id
}

func (f *fixture) status(id string) ContainerStatus {
	f.t.Helper()
	st, err := f.Container(id)
	if err != nil {
		f.t.Fatal(err)
	}
	return st
}

func (f *fixture) awaitExit(id string) ContainerStatus {
	f.t.Helper()
	c, err := f.ledger.Container(id)
	if err != nil {
		f.t.Fatal(err)
	}
	select {
	case <-c.Exited():
	case <-time.After(20 * time.Second):
		f.t.Fatalf("container %s does not exit", id)
	}
	return f.status(id)
}

func (f *fixture) logOf(id string) string {
	f.t.Helper()
	data, err := os.ReadFile(f.status(id).LogPath)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(data)
}

func TestLifecycle(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	id := f.start(pod, script("a", "hostname; id -u; exit 7"))
	for _, dir := range []string{f.bundles.Dir(id), f.spaces.Dir(pod)} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s is open to others: %v, %v", dir, info.Mode(), err)
		}
	}
	st := f.awaitExit(id)
	if st.ExitCode != 7 || st.Reason != ReasonError || st.StartedAt.IsZero() || st.FinishedAt.Before(st.StartedAt) {
		t.Errorf("status = %+v", st)
	}
	if log := f.logOf(id); !strings.Contains(log, "stdout F p1\n") || !strings.Contains(log, "stdout F 0\n") {
		t.Errorf("log = %q", log)
	}
	if p, err := f.Pod(pod[:12]); err != nil || p.ID != pod || p.IPs[0].String() != "10.1.2.3" {
		t.Errorf("pod by prefix = %+v, %v", p, err)
	}
	for range 2 {
		if err := f.RemoveContainer(t.Context(), id); err != nil {
			t.Error(err)
		}
		if err := f.StopPod(t.Context(), pod); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := f.RemovePod(t.Context(), pod); err != nil {
			t.Error(err)
		}
	}
	if want := []string{"add " + pod, "del " + pod}; strings.Join(f.net.calls, ",") != strings.Join(want, ",") {
		t.Errorf("network calls = %v, want ADD and DEL once", f.net.calls)
	}
}

// A network that can never be torn down makes Stop fail, but does not keep the pod from being removed.
func TestRemoveWithABrokenNetwork(t *testing.T) {
	f := newFixture(t)
	broken := errors.New("the plugin is broken")
	f.net.teardown = func(context.Context, cni.Pod) error { return broken }
	pod := f.runPod(f.podConfig())
	for range 2 {
		if err := f.StopPod(t.Context(), pod); !errors.Is(err, broken) {
			t.Errorf("stop: %v, want %v", err, broken)
		}
	}
	if err := f.RemovePod(t.Context(), pod); err != nil {
		t.Errorf("remove: %v", err)
	}
	if _, err := f.Pod(pod); !errors.Is(err, ErrNotFound) {
		t.Errorf("status after removal: %v", err)
	}
}

func TestStop(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	polite := f.start(pod, script("polite", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"))
	deaf := f.start(pod, script("deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
	for _, id := range []string{polite, deaf} {
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(f.logOf(id), "ready"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not ready")
			}
		}
	}
	start := time.Now()
	if err := f.StopContainer(t.Context(), polite, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if st := f.awaitExit(polite); st.ExitCode != 3 || time.Since(start) > 10*time.Second {
		t.Errorf("polite: %+v after %s", st, time.Since(start))
	}
	// A later, shorter grace shortens the wait of the first call.
	first := make(chan error, 1)
	go func() { first <- f.StopContainer(t.Context(), deaf, time.Minute) }()
	if err := f.StopContainer(t.Context(), deaf, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	if st := f.awaitExit(deaf); st.ExitCode != 137 {
		t.Errorf("deaf: %+v", st)
	}
}

func TestSameAttemptJoins(t *testing.T) {
	f := newFixture(t)
	slow := make(chan struct{})
	f.net.setup = func(context.Context, cni.Pod) (cni.Result, error) { <-slow; return cni.Result{}, nil }
	config := f.podConfig()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.RunPod(short, config); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("first call: %v", err)
	}
	ids := make([]string, 50)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i], _ = f.RunPod(t.Context(), config) })
	}
	time.AfterFunc(50*time.Millisecond, func() { close(slow) })
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("ids differ: %v", ids)
		}
	}
	if n := len(f.net.calls); n != 1 {
		t.Errorf("%d network calls, want 1", n)
	}
	created := make([]string, 50)
	for i := range created {
		wg.Go(func() { created[i], _ = f.CreateContainer(t.Context(), ids[0], script("c", "true"), f.image) })
	}
	wg.Wait()
	for _, id := range created {
		if id == "" || id != created[0] {
			t.Fatalf("container ids differ: %v", created)
		}
	}
	if n := len(f.Containers()); n != 1 {
		t.Errorf("%d containers, want 1", n)
	}
	if err := f.StopPod(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := f.RunPod(t.Context(), config); !errors.Is(err, ErrState) {
		t.Errorf("run of a stopped attempt: %v", err)
	}
}

func TestFailedPodLeavesNothing(t *testing.T) {
	f := newFixture(t)
	f.net.setup = func(context.Context, cni.Pod) (cni.Result, error) { return cni.Result{}, errors.New("no address") }
	config := f.podConfig()
	if _, err := f.RunPod(t.Context(), config); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Fatalf("err = %v", err)
	}
	if left := f.Pods(); len(left) > 0 {
		t.Errorf("pods are left: %v", left)
	}
	f.net.setup = nil
	f.runPod(config) // the same attempt may be tried again
}

func TestStartFailure(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	c := script("a", "")
	c.Command = []string{"/no/such/program"}
	if _, err := f.CreateContainer(t.Context(), pod, c, f.image); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("err = %v", err)
	}
	if left := f.Containers(); len(left) > 0 {
		t.Errorf("containers are left: %v", left)
	}
}

func TestRestartKeepsContainers(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	runs := f.start(pod, script("runs", "while :; do echo tick; sleep 0.01; done"))
	ends := f.start(pod, script("ends", "sleep 0.3; exit 7"))
	created, err := f.CreateContainer(t.Context(), pod, script("created", "echo later"), f.image)
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	f.reopen(func() { time.Sleep(600 * time.Millisecond) })
	if st := f.status(runs); st.Phase != ContainerRunning || st.PID == 0 {
		t.Errorf("running container: %+v", st)
	}
	if st := f.status(ends); st.Phase != ContainerExited || st.ExitCode != 7 ||
		st.FinishedAt.After(before.Add(500*time.Millisecond)) || st.FinishedAt.Before(before) {
		t.Errorf("ended container: %+v; before the restart it was %s", st, before)
	}
	if err := f.StartContainer(t.Context(), created); err != nil {
		t.Error(err)
	}
	f.awaitExit(created)
	if out, err := f.ExecSync(t.Context(), runs, []string{"echo", "hi"}, 0); err != nil || string(out.Stdout) != "hi\n" {
		t.Errorf("exec: %+v, %v", out, err)
	}
	if id, err := f.RunPod(t.Context(), f.Pods()[0].Config); err != nil || id != pod {
		t.Errorf("same attempt after the restart: %s, %v", id, err)
	}
}

func TestMonitorDeathIsNoticed(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	id := f.start(pod, script("a", "while :; do sleep 0.1; done"))
	info, err := f.monitor.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, _ := os.FindProcess(info.PID)
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if st := f.awaitExit(id); st.ExitCode != exitUnknown || st.Reason != ReasonUnknown || st.Message == "" {
		t.Errorf("status = %+v", st)
	}
	f.awaitExit(f.start(pod, script("b", "true"))) // a new monitor serves
}

func TestSharedPIDNamespace(t *testing.T) {
	f := newFixture(t)
	config := f.podConfig()
	config.Namespaces.PID = want.NamespacePod
	pod := f.runPod(config)
	a := script("a", "while :; do sleep 0.1; done")
	a.Namespaces.PID = want.NamespacePod
	f.start(pod, a)
	b := script("b", "ps; echo escape: $(ls /proc/1/root 2>&1)")
	b.Namespaces.PID = want.NamespacePod
	id := f.start(pod, b)
	f.awaitExit(id)
	if log := f.logOf(id); !strings.Contains(log, "pod-init") || !strings.Contains(log, "sleep 0.1") {
		t.Errorf("the pod's processes are not shared:\n%s", log)
	}
	if log := f.logOf(id); strings.Contains(log, "home") {
		t.Errorf("the host's root is in reach:\n%s", log)
	}
	target := script("c", "ps")
	target.Namespaces = want.Namespaces{PID: want.NamespaceTarget, TargetID: f.start(pod, script("t", "sleep 77"))}
	id = f.start(pod, target)
	f.awaitExit(id)
	if log := f.logOf(id); !strings.Contains(log, "sleep 77") || strings.Contains(log, "pod-init") {
		t.Errorf("the target's processes are not shared:\n%s", log)
	}
}

// TestStraysAreRemoved loses the records, as a damaged database would.
func TestStraysAreRemoved(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	f.start(pod, script("a", "while :; do sleep 0.1; done"))
	f.reopen(func() {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(filepath.Join(f.dir, "records.db"+suffix))
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		bundles, _ := os.ReadDir(f.bundles.Root)
		pods, _ := os.ReadDir(f.spaces.Root)
		if len(bundles)+len(pods) == 0 {
			return // the fixture checks the rest
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %v %v", bundles, pods)
		}
	}
}

// A pod is wanted with its containers or not at all by who says so: a daemon that died before the last was made has left neither.
func TestUnfinishedPodIsRemoved(t *testing.T) {
	f := newFixture(t)
	var pods, containers []string
	for range 2 {
		c := f.podConfig()
		c.Unfinished = true
		pod := f.runPod(c)
		id, err := f.CreateContainer(t.Context(), pod, script("a", "sleep 1000"), f.image)
		if err != nil {
			t.Fatal(err)
		}
		pods, containers = append(pods, pod), append(containers, id)
	}
	if err := f.FinishPod(t.Context(), pods[1]); err != nil {
		t.Fatal(err)
	}
	f.reopen(nil)
	removed := func() bool {
		_, pod := f.Pod(pods[0])
		_, container := f.Container(containers[0])
		return errors.Is(pod, ErrNotFound) && errors.Is(container, ErrNotFound)
	}
	for deadline := time.Now().Add(20 * time.Second); !removed(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the unfinished pod is not removed")
		}
	}
	if st, err := f.Pod(pods[1]); err != nil || !st.Ready() || st.Config.Unfinished {
		t.Errorf("the finished pod: %+v, %v", st, err)
	}
	if st := f.status(containers[1]); st.Phase != ContainerCreated {
		t.Errorf("its container is %s", st.Phase)
	}
	if err := f.StopPod(t.Context(), pods[1]); err != nil {
		t.Fatal(err)
	}
	if err := f.FinishPod(t.Context(), pods[1]); !errors.Is(err, ErrState) {
		t.Errorf("of a stopped pod: %v", err)
	}
	if err := f.FinishPod(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an unknown pod: %v", err)
	}
}

func TestExecSync(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	id := f.start(pod, script("a", "while :; do sleep 0.1; done"))
	sh := func(text string) []string { return []string{"sh", "-c", text} }
	r, err := f.ExecSync(t.Context(), id, sh("echo out; echo err >&2; exit 5"), 0)
	if err != nil || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 5 {
		t.Errorf("result = %+v, %v", r, err)
	}
	// A grandchild that holds the output open is not waited for.
	start := time.Now()
	if r, err := f.ExecSync(t.Context(), id, sh("sleep 30 & echo x"), 0); err != nil || string(r.Stdout) != "x\n" || time.Since(start) > 5*time.Second {
		t.Errorf("result = %+v, %v after %s", r, err, time.Since(start))
	}
	if _, err := f.ExecSync(t.Context(), id, sh("sleep 30"), 300*time.Millisecond); !errors.Is(err, ErrTimeout) {
		t.Errorf("timeout: %v", err)
	}
	if r, err := f.ExecSync(t.Context(), id, sh("cat /bin/busybox /bin/busybox /bin/busybox /bin/busybox /bin/busybox "+
		"/bin/busybox /bin/busybox /bin/busybox /bin/busybox /bin/busybox /bin/busybox /bin/busybox"), 0); err != nil ||
		len(r.Stdout) != MaxExecOutput {
		t.Errorf("large output: %d bytes, %v; want it cut at %d", len(r.Stdout), err, MaxExecOutput)
	}
	if _, err := f.ExecSync(t.Context(), "nobody", sh("true"), 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
}
