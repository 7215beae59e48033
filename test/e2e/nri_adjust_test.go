package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestNRIAdjust has a plugin change all that can be changed of a container, and looks from inside.
func TestNRIAdjust(t *testing.T) {
	programs := handlerPrograms(t)
	trace := t.TempDir()
	cdi := filepath.Join(t.TempDir(), "cdi")
	if err := os.Mkdir(cdi, 0o755); err != nil {
		t.Fatal(err)
	}
	device := `{"cdiVersion": "0.6.0", "kind": "example.com/thing", "devices": [{"name": "a", "containerEdits": {"env": ["FROM_CDI=yes"]}}]}`
	if err := os.WriteFile(filepath.Join(cdi, "thing.json"), []byte(device), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newStoppedNRINode(t, handlerConfig(programs))
	n.configure(fmt.Sprintf("[runtime]\ncdi_spec_dirs = [%q]\n", cdi))
	n.serve()
	p := n.connectPlugin("10", "adjusts", nil)
	n.onEach(programs, func(t *testing.T, name string) {
		mounted := t.TempDir()
		if err := os.WriteFile(filepath.Join(mounted, "file"), []byte("from the host\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		group := cgroupRoot + "/by-plugin-" + name
		p.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			return adjustment(mounted, filepath.Join(trace, name), group), nil, nil
		}
		pod := n.podConfig()
		podID := n.runPodOn(name, pod)
		id := n.run(podID, pod, shell("c", "exit 9", func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "STAYS", Value: []byte("1")}, {Key: "GOES", Value: []byte("1")}, {Key: "CHANGES", Value: []byte("1")}}
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/goes", Permissions: "r"}}
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpuShares: 500, CpuQuota: 50000, CpuPeriod: 100000}
		}))
		for script, want := range map[string]string{
			"echo $STAYS,$GOES,$CHANGES,$NEW,$FROM_CDI":              "1,,2,3,yes",
			"cat /from-nri/file":                                     "from the host",
			"touch /from-nri/x 2>/dev/null || echo read-only":        "read-only",
			"test -c /dev/nri-null && echo x >/dev/nri-null && echo": "",
			"test -e /dev/goes || echo gone":                         "gone",
			"awk '/Max processes/ {print $3, $4}' /proc/1/limits":    "5000 6000",
			"cat /proc/1/oom_score_adj":                              "777",
			"tr '\\0' ' ' </proc/1/cmdline":                          "sleep 1234",
			"cat /proc/sys/net/ipv4/ip_default_ttl":                  "77",
			readLimits:                                               "83886080 30000",
		} {
			if out, code := n.exec(id, script); out != want || code != 0 {
				t.Errorf("%s: %q, %d, want %q", script, out, code, want)
			}
		}
		if data, _ := os.ReadFile(filepath.Join(trace, name)); !strings.Contains(string(data), id) {
			t.Errorf("the hook was told %q", data)
		}
		checkGroup(t, n, id, group, "pids.max", "44")
		n.checkMerged(t, id)
		if got := p.of(id)[2].container; got.Annotations["example.com/nri"] != "was here" || got.Linux.CgroupsPath != group {
			t.Errorf("PostCreateContainer tells of annotations %v, cgroup %s", got.Annotations, got.Linux.CgroupsPath)
		}
		n.remove(podID)
		for _, controller := range []string{"pids", ""} {
			if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", controller, group)); err == nil {
				t.Errorf("cgroup %s is left in %q", group, controller)
			}
		}
	})
}

// adjustment changes one thing of each kind.
func adjustment(mounted, trace, group string) *api.ContainerAdjustment {
	a := &api.ContainerAdjustment{}
	a.AddAnnotation("example.com/nri", "was here")
	a.AddEnv("CHANGES", "2")
	a.AddEnv("NEW", "3")
	a.RemoveEnv("GOES")
	a.AddMount(&api.Mount{Source: mounted, Destination: "/from-nri", Type: "bind", Options: []string{"rbind", "ro", "rprivate"}})
	a.AddDevice(&api.LinuxDevice{Path: "/dev/nri-null", Type: "c", Major: 1, Minor: 3, FileMode: api.FileMode(os.FileMode(0o666))})
	a.RemoveDevice("/dev/goes")
	a.AddCDIDevice(&api.CDIDevice{Name: "example.com/thing=a"})
	a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >>" + trace}}}})
	a.AddRlimit("RLIMIT_NPROC", 6000, 5000)
	a.SetArgs([]string{"sleep", "1234"})
	score := 777
	a.SetLinuxOomScoreAdj(&score)
	a.SetLinuxMemoryLimit(80 << 20)
	a.SetLinuxCPUQuota(30000)
	a.SetLinuxPidLimits(44)
	a.SetLinuxSysctl("net.ipv4.ip_default_ttl", "77")
	a.SetLinuxCgroupsPath(group)
	return a
}

// checkGroup looks at a file of a container's cgroup, and whether the container is in there.
func checkGroup(t *testing.T, n *node, id, group, file, want string) {
	t.Helper()
	found := false
	for _, controller := range []string{"pids", ""} {
		data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, group, file))
		if err != nil {
			continue
		}
		found = true
		if strings.TrimSpace(string(data)) != want {
			t.Errorf("%s of %s is %q, want %s", file, group, data, want)
		}
	}
	if !found {
		t.Errorf("container %s has no cgroup %s", id, group)
	}
}

// checkMerged wants an update to keep what the plugin has set, and the status to tell of both.
func (n *node) checkMerged(t *testing.T, id string) {
	t.Helper()
	if _, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 40000},
	}); err != nil {
		t.Errorf("update: %v", err)
	}
	r := n.status(id).GetResources().GetLinux()
	if r.GetMemoryLimitInBytes() != 80<<20 || r.GetCpuQuota() != 40000 || r.GetCpuShares() != 500 || r.GetCpuPeriod() != 100000 {
		t.Errorf("the status tells of %v", r)
	}
	if out, _ := n.exec(id, readLimits); out != "83886080 40000" {
		t.Errorf("after the update: %q", out)
	}
}

// limited is a container with limits.
func (n *node) limited(podID string, pod *runtimeapi.PodSandboxConfig, name string) string {
	n.t.Helper()
	return n.run(podID, pod, shell(name, "sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 20000, CpuPeriod: 100000}
	}))
}

// checkLimits looks into the cgroup of a container.
func (n *node) checkLimits(when, id string, memory int64, quota int) {
	n.t.Helper()
	if out, _ := n.exec(id, readLimits); out != fmt.Sprint(memory, quota) {
		n.t.Errorf("%s: limits are %q, want %d %d", when, out, memory, quota)
	}
}

// change is an update of a container.
func change(id string, quota, memory int64) *api.ContainerUpdate {
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	if quota != 0 {
		u.SetLinuxCPUQuota(quota)
	}
	if memory != 0 {
		u.SetLinuxMemoryLimit(memory)
	}
	return u
}

// nriCreate answers CreateContainer.
type nriCreate func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)

// TestNRIUpdate has plugins update containers with their answers, and looks into their cgroups.
func TestNRIUpdate(t *testing.T) {
	n := newNRINode(t, "")
	first, second := n.connectPlugin("10", "first", nil), n.connectPlugin("20", "second", nil)
	pod := n.podConfig()
	podID := n.runPod(pod)
	a := n.limited(podID, pod, "a")
	n.checkLimits("at first", a, 64<<20, 20000)

	// The creation of another one.
	updates := func(all ...*api.ContainerUpdate) nriCreate {
		return func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			return nil, all, nil
		}
	}
	first.create, second.create = updates(change(a, 30000, 0)), updates(change(a, 0, 70<<20), change("nobody", 30000, 0))
	b := n.limited(podID, pod, "b")
	first.create, second.create = nil, nil
	n.checkLimits("after the creation of another", a, 70<<20, 30000)

	// An update of the other one, which changes both.
	first.update = func(c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		if c.Id != b || r.Cpu.GetQuota().GetValue() != 50000 {
			t.Errorf("update of %s to %v", c.Id, r)
		}
		return []*api.ContainerUpdate{change(a, 25000, 0), change(b, 45000, 0)}, nil
	}
	second.update = func(_ *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		if r.Cpu.GetQuota().GetValue() != 45000 {
			t.Errorf("the second plugin does not see what the first one wants: %v", r)
		}
		return nil, nil
	}
	if _, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: b, Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 50000, MemoryLimitInBytes: 90 << 20},
	}); err != nil {
		t.Fatal(err)
	}
	n.checkLimits("by the update of another", a, 70<<20, 25000)
	n.checkLimits("as a plugin wants instead", b, 90<<20, 45000)
	if got := n.status(b).GetResources().GetLinux(); got.GetCpuQuota() != 45000 {
		t.Errorf("the status tells of %v", got)
	}

	// The answer to Synchronize.
	n.connectPlugin("30", "third", func(p *nriPlugin) {
		p.sync = func([]*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
			return []*api.ContainerUpdate{change(b, 35000, 0)}, nil
		}
	})
	eventually(t, "the update by Synchronize is made", func() bool {
		return n.status(b).GetResources().GetLinux().GetCpuQuota() == 35000
	})
	n.checkLimits("by Synchronize", b, 90<<20, 35000)

	// Two that want the same.
	sets := func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("WHOSE", "mine")
		return a, nil, nil
	}
	first.create, second.create = sets, sets
	if _, err := n.create(podID, pod, shell("c", "true")); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "WHOSE") {
		t.Errorf("two plugins set the same variable: %v", err)
	}
}

// TestNRIUnsolicited has plugins update containers by themselves.
func TestNRIUnsolicited(t *testing.T) {
	n := newNRINode(t, "")
	p := n.connectPlugin("10", "updates", nil)
	pod := n.podConfig()
	podID := n.runPod(pod)
	a, b := n.limited(podID, pod, "a"), n.limited(podID, pod, "b")
	failed, err := p.UpdateContainers([]*api.ContainerUpdate{change(a, 15000, 0), change(a[:12], 16000, 0), change(b, 0, 4096)})
	if err != nil || len(failed) != 2 {
		t.Errorf("%v failed, %v", failed, err)
	}
	n.checkLimits("by itself", a, 64<<20, 15000)
	n.checkLimits("after a refusal", b, 64<<20, 20000)

	// While it is asked about another container.
	p.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		failed, err := p.UpdateContainers([]*api.ContainerUpdate{change(a, 16000, 0)})
		if err != nil || len(failed) > 0 {
			t.Errorf("update from within CreateContainer: %v failed, %v", failed, err)
		}
		return nil, nil, nil
	}
	n.limited(podID, pod, "d")
	n.checkLimits("from within CreateContainer", a, 64<<20, 16000)

	// Two updates at the same time, of which each changes the other one's container.
	p.update = func(c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		return []*api.ContainerUpdate{change(map[string]string{a: b, b: a}[c.Id], 17000, 0)}, nil
	}
	begin := time.Now()
	var both sync.WaitGroup
	for i := range 20 {
		both.Go(func() {
			if _, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: []string{a, b}[i%2], Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 17000},
			}); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if took := time.Since(begin); took > 8*time.Second { // a deadlock would last as long as an update may take, 10 s
		t.Errorf("20 updates that change each other's containers took %s", took)
	}
	n.checkLimits("by each other", a, 64<<20, 17000)
}

// TestNRIEvict has plugins evict containers.
func TestNRIEvict(t *testing.T) {
	n := newNRINode(t, "")
	p := n.connectPlugin("10", "evicts", nil)
	pod := n.podConfig()
	podID := n.runPod(pod)
	var ids []string
	for _, name := range []string{"a", "b"} {
		ids = append(ids, n.run(podID, pod, shell(name, "trap '' TERM; sleep 1000")))
	}
	evict := func(id string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.evict = []*api.ContainerEviction{{ContainerId: id, Reason: "a better use of its CPUs"}, {ContainerId: "nobody"}}
	}
	evict(ids[0])
	if _, err := p.UpdateContainers(nil); err != nil {
		t.Fatal(err)
	}
	evict(ids[1])
	n.run(podID, pod, shell("c", "sleep 1000"))
	for _, id := range ids {
		if st := n.awaitExit(id); st.ExitCode != 137 {
			t.Errorf("it ended with %d", st.ExitCode)
		}
		eventually(t, "its end is told", func() bool { return strings.HasSuffix(names(p.of(id)), "PostStartContainer StopContainer") })
	}
	if !strings.Contains(n.log(), "a better use of its CPUs") {
		t.Errorf("the log does not say why:\n%s", n.log())
	}
}

// TestNRILaunched has the daemon start a plugin of its directory, which is this test's program, see TestMain.
func TestNRILaunched(t *testing.T) {
	n := newStoppedNRINode(t, "disable_connections = true\n")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"plugins", "conf.d"} {
		if err := os.Mkdir(filepath.Join(n.nri, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// A link, whose name the plugin goes by.
	if err := os.Symlink(self, filepath.Join(n.nri, "plugins", "50-launched")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.nri, "conf.d", "launched.conf"), []byte("from its file"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.serve()
	pod := n.podConfig()
	podID := n.runPod(pod)
	if out, _ := n.output(podID, pod, shell("c", "echo $CONFIGURED")); out != "from its file by criserver" {
		t.Errorf("output = %q\n%s", out, n.log())
	}
	n.kill()
	n.start()
	if out, _ := n.output(podID, pod, shell("d", "echo $CONFIGURED")); out != "from its file by criserver" {
		t.Errorf("output after a restart = %q\n%s", out, n.log())
	}
	if _, err := os.Stat(filepath.Join(n.nri, "nri.sock")); err == nil {
		t.Error("there is a socket although connections are disabled")
	}
}
