package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestNRIOff looks for the socket of a daemon whose configuration does not say that NRI is on.
func TestNRIOff(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nri.sock")
	n := newNode(t, "[nri]\nsocket_path = \""+socket+"\"\n")
	pod := n.podConfig()
	n.run(n.runPod(pod), pod, shell("c", "sleep 1000"))
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
}

// TestNRIEvents takes a pod through its life and looks at what a plugin is told.
func TestNRIEvents(t *testing.T) {
	n := newNRINode(t, "")
	p := n.connectPlugin("10", "all", nil)
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Labels, c.Annotations = map[string]string{"app": "a"}, map[string]string{"example.com/pod": "b"}
	})
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("c", "trap 'exit 3' TERM; while :; do sleep 0.05; done", func(c *runtimeapi.ContainerConfig) {
		c.Labels, c.Annotations = map[string]string{"l": "m"}, map[string]string{"example.com/c": "d"}
		c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}}
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}
	}))
	if _, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: podID, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 30},
	}); err != nil {
		t.Fatal(err)
	}
	pid, _ := n.exec(id, "true")
	if pid != "" {
		t.Errorf("exec = %q", pid)
	}
	for range 2 { // the second time there is nothing to tell
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	other := n.run(podID, pod, shell("other", "sleep 1000"))
	n.remove(podID)

	const life = "CreateContainer ValidateContainerAdjustment PostCreateContainer StartContainer PostStartContainer "
	events := p.of(id)
	if got, want := names(events), life+"UpdateContainer PostUpdateContainer StopContainer RemoveContainer"; got != want {
		t.Errorf("of the container: %s\nwant %s", got, want)
	}
	if got, want := names(p.of(other)), life+"StopContainer RemoveContainer"; got != want {
		t.Errorf("of the one that the pod's end has ended: %s\nwant %s", got, want)
	}
	podEvents := p.of(podID)
	if got, want := names(podEvents), "RunPodSandbox UpdatePodSandbox PostUpdatePodSandbox StopPodSandbox RemovePodSandbox"; got != want {
		t.Errorf("of the pod: %s\nwant %s", got, want)
	}
	checkOrder(t, p, "RunPodSandbox", "CreateContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox")
	checkPod(t, podEvents[0].pod, podID, pod)
	if got := podEvents[2].pod.Linux.PodResources.Memory.GetLimit().GetValue(); got != 1<<30 {
		t.Errorf("the pod's new limit is told as %d", got)
	}
	for i, state := range []api.ContainerState{0, 0, 1, 1, 3, 3, 3, 4, 4} {
		if i < len(events) && events[i].container.State != state {
			t.Errorf("%s: state %s, want %s", events[i].name, events[i].container.State, state)
		}
	}
	checkContainer(t, events, podID, pod)
}

// checkOrder wants the first event of each name to come after those before it.
func checkOrder(t *testing.T, p *nriPlugin, order ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	last := -1
	for _, name := range order {
		i := slices.IndexFunc(p.events, func(e nriEvent) bool { return e.name == name })
		if i <= last {
			t.Errorf("%s is event %d of %s", name, i, names(p.events))
		}
		last = i
	}
}

func checkPod(t *testing.T, got *api.PodSandbox, id string, c *runtimeapi.PodSandboxConfig) {
	t.Helper()
	if got.Id != id || got.Name != c.Metadata.Name || got.Namespace != c.Metadata.Namespace || got.Uid != c.Metadata.Uid {
		t.Errorf("the pod is told as %v", got)
	}
	if got.Labels["app"] != "a" || got.Annotations["example.com/pod"] != "b" || len(got.Ips) != 2 {
		t.Errorf("the pod's labels, annotations, addresses: %v %v %v", got.Labels, got.Annotations, got.Ips)
	}
	var kinds []string
	for _, ns := range got.Linux.Namespaces {
		kinds = append(kinds, ns.Type)
	}
	slices.Sort(kinds)
	if strings.Join(kinds, " ") != "ipc network uts" || !strings.HasSuffix(got.Linux.CgroupsPath, id) {
		t.Errorf("the pod's namespaces are %q, its cgroup %s", kinds, got.Linux.CgroupsPath)
	}
}

// checkContainer looks at the container of TestNRIEvents.
func checkContainer(t *testing.T, events []nriEvent, podID string, pod *runtimeapi.PodSandboxConfig) {
	t.Helper()
	for _, e := range events {
		c := e.container
		if c.PodSandboxId != podID || c.Name != "c" || c.Labels["l"] != "m" || c.Annotations["example.com/c"] != "d" {
			t.Errorf("%s: the container is told as %v", e.name, c)
		}
		if !slices.Contains(c.Env, "A=b") || len(c.Args) != 3 || c.Args[0] != "sh" || c.Linux.Resources.Cpu.GetShares().GetValue() != 512 {
			t.Errorf("%s: environment, arguments, resources: %v %v %v", e.name, c.Env, c.Args, c.Linux.Resources)
		}
		if len(c.Mounts) < 5 || !strings.HasPrefix(c.Image.ConfigDigest, "sha256:") || c.Image.Name != busyboxImage {
			t.Errorf("%s: mounts, image: %v %v", e.name, c.Mounts, c.Image)
		}
		if e.pod.Id != podID || e.pod.Name != pod.Metadata.Name {
			t.Errorf("%s: the pod is %v", e.name, e.pod)
		}
	}
	memory := func(i int) int64 { return events[i].container.Linux.Resources.Memory.GetLimit().GetValue() }
	if memory(0) != 64<<20 || memory(6) != 96<<20 || events[5].resources.Memory.GetLimit().GetValue() != 96<<20 {
		t.Errorf("memory: %d at first, %v is asked for, %d then", memory(0), events[5].resources, memory(6))
	}
	if started := events[4].container; started.Pid == 0 || started.StartedAt == 0 {
		t.Errorf("of the start: PID %d at %d", started.Pid, started.StartedAt)
	}
	if ended := events[7].container; ended.ExitCode != 3 || ended.FinishedAt == 0 || ended.StatusReason != "Error" {
		t.Errorf("of the end: code %d at %d for %q", ended.ExitCode, ended.FinishedAt, ended.StatusReason)
	}
}

// TestNRIRefusals has plugins refuse, and looks for what is left then.
func TestNRIRefusals(t *testing.T) {
	n := newNRINode(t, "[nri.default_validator]\nenable = true\nreject_oci_hook_adjustment = true\n")
	refuse := ""
	p := n.connectPlugin("10", "strict", func(p *nriPlugin) {
		p.tell = func(event string) error {
			if event == refuse {
				return status.Error(codes.NotFound, "not "+event+" today") // the kubelet must not take it for its own
			}
			return nil
		}
		p.create = func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			switch c.Name {
			case "hooks":
				a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/true"}}})
			case "rlimit":
				a.AddRlimit("RLIMIT_NONE", 1, 1)
			case "cpus":
				a.SetLinuxCPUSetCPUs("900")
			case "group":
				a.SetLinuxCgroupsPath("here")
			}
			return a, nil, nil
		}
	})
	check := func(err error, names string) {
		t.Helper()
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), names) {
			t.Errorf("err = %v, want FailedPrecondition that names %s", err, names)
		}
	}
	refuse = "RunPodSandbox"
	_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig()})
	check(err, "not RunPodSandbox today")
	if got := names(p.of(p.await("RunPodSandbox", 1).pod.Id)); got != "RunPodSandbox StopPodSandbox RemovePodSandbox" {
		t.Errorf("of the pod that was refused: %s", got)
	}
	refuse = ""
	pod := n.podConfig()
	podID := n.runPod(pod)
	for i, event := range []string{"CreateContainer", "ValidateContainerAdjustment"} {
		refuse = event
		_, err = n.create(podID, pod, shell("c", "true"))
		check(err, "not "+event+" today")
		if got := names(p.of(p.await("CreateContainer", i+1).container.Id)); !strings.HasSuffix(got, event+" StopContainer RemoveContainer") {
			t.Errorf("of the container that was refused: %s", got)
		}
	}
	refuse = ""
	for name, said := range map[string]string{"hooks": "hooks", "rlimit": "RLIMIT_NONE", "cpus": "cpuset_cpus", "group": "cgroups_path"} {
		_, err = n.create(podID, pod, shell(name, "true"))
		check(err, said)
	}
	id, err := n.create(podID, pod, shell("c", "sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	refuse = "StartContainer"
	_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	check(err, "not StartContainer today")
	if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" {
		t.Errorf("after the refusal it is %v", st)
	}
	refuse = "UpdateContainer"
	id = n.run(podID, pod, shell("u", "sleep 1000"))
	_, err = n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 300},
	})
	check(err, "not UpdateContainer today")
	refuse = "UpdatePodSandbox"
	_, err = n.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: podID, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 300},
	})
	check(err, "not UpdatePodSandbox today")
	for _, event := range []string{"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"} {
		refuse = event // changes nothing
		pod := n.podConfig()
		podID := n.runPod(pod)
		n.run(podID, pod, shell("c", "sleep 1000"))
		n.remove(podID)
	}
}

// TestNRIHang has plugins hang and die while containers are made.
func TestNRIHang(t *testing.T) {
	n := newNRINode(t, "plugin_request_timeout = \"1s\"\n")
	release := make(chan struct{})
	defer close(release)
	hang := func(event string) func(*nriPlugin) {
		return func(p *nriPlugin) {
			p.tell = func(e string) error {
				if e == event {
					<-release
				}
				return nil
			}
		}
	}
	after := n.connectPlugin("90", "after", nil)
	pod := n.podConfig()
	podID := n.runPod(pod)
	for i, event := range []string{"Synchronize", "CreateContainer", "PostStartContainer", "ValidateContainerAdjustment", "StopContainer"} {
		p := n.connectPlugin("10", "hangs", hang(event))
		begin := time.Now()
		c := shell("c", "sleep 1000")
		c.Metadata.Attempt = uint32(i)
		id, err := n.create(podID, pod, c)
		if event == "ValidateContainerAdjustment" { // who guards must not be got past by being slow
			if err == nil {
				t.Error("a container was made although its validator has not answered")
			}
			continue
		}
		if err == nil {
			_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
		}
		if err == nil {
			_, err = n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id})
		}
		if err == nil {
			_, err = n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", event, err, n.log())
		}
		if took := time.Since(begin); took > 15*time.Second || took < time.Second {
			t.Errorf("%s: it took %s", event, took)
		}
		<-p.gone
		if got := names(after.of(id)); !strings.HasPrefix(got, "CreateContainer") || !strings.HasSuffix(got, "StopContainer RemoveContainer") {
			t.Errorf("%s: the other plugin was told of %s", event, got)
		}
	}
	dies := n.connectPlugin("10", "dies", func(p *nriPlugin) {
		p.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			return nil, nil, p.conn.Close()
		}
	})
	begin := time.Now()
	n.run(podID, pod, shell("d", "sleep 1000"))
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("with a plugin that dies it took %s", took)
	}
	<-dies.gone
	strict := n.connectPlugin("10", "strict", func(p *nriPlugin) {
		hang("CreateContainer")(p)
		p.options = []stub.Option{stub.WithFailurePolicy(&api.FailurePolicy{FailRequest: true, KeepConnected: true})}
	})
	if _, err := n.create(podID, pod, shell("e", "true")); err == nil || !strings.Contains(err.Error(), "10-strict") {
		t.Errorf("with a plugin that must answer: %v", err)
	}
	select {
	case <-strict.gone:
		t.Error("it was let go although it has asked not to be")
	default:
	}
	strict.Stop()
}

// TestNRIRestart connects plugins anew after the daemon was killed, and looks at what they are told of what was there.
func TestNRIRestart(t *testing.T) {
	n := newNRINode(t, "")
	before := n.connectPlugin("10", "before", nil)
	pod := n.podConfig()
	podID := n.runPod(pod)
	running := n.run(podID, pod, shell("running", "sleep 1000"))
	exited := n.run(podID, pod, shell("exited", "true"))
	n.awaitExit(exited)
	created, err := n.create(podID, pod, shell("created", "true"))
	if err != nil {
		t.Fatal(err)
	}
	dies := n.run(podID, pod, shell("dies", "sleep 0.5"))
	n.kill()
	<-before.gone
	time.Sleep(time.Second) // one container ends while no daemon looks
	n.start()
	for _, name := range []string{"first", "second"} {
		p := n.connectPlugin("10", name, nil)
		got := p.await("Synchronize", 1)
		if len(got.pods) != 1 || got.pods[0].Id != podID || got.pods[0].Name != pod.Metadata.Name {
			t.Errorf("%s: pods %v", name, got.pods)
		}
		var ids []string
		for _, c := range got.containers {
			ids = append(ids, c.Id)
			if want := map[string]api.ContainerState{running: 3, created: 1}[c.Id]; c.State != want || len(c.Args) == 0 || c.PodSandboxId != podID {
				t.Errorf("%s: container %v", name, c)
			}
		}
		if want := []string{running, created}; len(ids) != 2 || !slices.Contains(ids, want[0]) || !slices.Contains(ids, want[1]) {
			t.Errorf("%s: containers %q, want %q", name, ids, want)
		}
		if name == "first" {
			p.Stop()
			continue
		}
		n.remove(podID)
		for id, want := range map[string]string{
			running: "StopContainer RemoveContainer", created: "StopContainer RemoveContainer", exited: "RemoveContainer", dies: "RemoveContainer",
			podID: "StopPodSandbox RemovePodSandbox",
		} {
			if got := names(p.of(id)); got != want {
				t.Errorf("of %s: %s, want %s", id, got, want)
			}
		}
	}
}

// TestNRIChurn has pods come and go at once, with two plugins of which one is slow, and looks at the order of what is told of each.
func TestNRIChurn(t *testing.T) {
	n := newNRINode(t, "")
	n.pull(busyboxImage)
	p := n.connectPlugin("10", "watches", nil)
	n.connectPlugin("20", "slow", func(p *nriPlugin) {
		p.tell = func(string) error { time.Sleep(5 * time.Millisecond); return nil }
	})
	var workers sync.WaitGroup
	for w := range 3 {
		rng := rand.New(rand.NewPCG(1, uint64(w)))
		workers.Go(func() {
			for i := range 6 {
				if !n.churn(t.Context(), fmt.Sprintf("nri-%d-%d", w, i), rng) {
					t.Error("a pod has not lived through")
				}
			}
		})
	}
	workers.Wait()
	p.mu.Lock()
	told := map[string]string{}
	for _, e := range p.events {
		switch {
		case e.container != nil:
			told["container "+e.container.Id] += e.name + " "
		case e.pod != nil:
			told["pod "+e.pod.Id] += e.name + " "
		}
	}
	p.mu.Unlock()
	if len(told) != 2*18 {
		t.Errorf("told of %d pods and containers, want 36", len(told))
	}
	for id, events := range told {
		want := "RunPodSandbox StopPodSandbox RemovePodSandbox "
		if strings.HasPrefix(id, "container") {
			want = "CreateContainer ValidateContainerAdjustment PostCreateContainer StartContainer PostStartContainer StopContainer RemoveContainer "
		}
		if events != want {
			t.Errorf("%s: %s", id, events)
		}
	}
}
