package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/sandbox/cgroup"
)

// The pod's cgroup is the one that the kubelet names, with the containers' right beneath; limits are there before the workload
// is; nothing of it is left, and what the kubelet owns stays.
func TestCgroupParent(t *testing.T) {
	n := newNode(t)
	if r, err := n.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{}); err != nil || r.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("cgroup driver: %v, %v", r, err)
	}
	const kubepods = "/criserver-e2e-kubepods"
	owned, missing := kubepods+"/burstable/pod-owned", kubepods+"/burstable/pod-missing"
	if err := cgroup.Create(owned); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cgroup.Remove(kubepods); err != nil {
			t.Error(err)
		}
	})
	for _, parent := range []string{owned, missing} {
		pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })
		podID := n.runPod(pod)
		id := n.run(podID, pod, shell("c", readLimits+"; while :; do sleep 1; done", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 30000, MemoryLimitInBytes: 32 << 20}
		}))
		eventually(t, "the workload tells its limits", func() bool { return len(logLines(t, n.status(id).LogPath)) > 0 })
		if got := logLines(t, n.status(id).LogPath)[0]; got != "33554432 30000" {
			t.Errorf("the first thing that the workload sees of its limits: %q", got)
		}
		if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", n.pid(id))); err != nil || !strings.Contains(string(got), ":"+filepath.Join(parent, id)+"\n") {
			t.Errorf("want %s in %s, %v", filepath.Join(parent, id), got, err)
		}
		if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
			t.Fatal(err)
		}
		if left, err := cgroup.Children(parent); err != nil || len(left) > 0 {
			t.Errorf("left below %s: %v, %v", parent, left, err)
		}
	}
	if !cgroup.Exists(owned) {
		t.Error("the kubelet's cgroup was removed")
	}
	if cgroup.Exists(missing) {
		t.Error("a cgroup that was made is left")
	}
}

// TestCgroupParents: a pod's cgroup is made with those above it, and they go with the last pod that is below; one that is not of a pod
// stays, and so do those that the pods of a former daemon came with.
func TestCgroupParents(t *testing.T) {
	n := newNode(t)
	const top = "/criserver-e2e-parents"
	others := top + "/a/others"
	t.Cleanup(func() {
		if err := cgroup.Remove(top); err != nil {
			t.Error(err)
		}
	})
	run := func(parent string) string {
		pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })
		podID := n.runPod(pod)
		n.run(podID, pod, shell("c", "sleep 1000"))
		return podID
	}
	remove := func(podID string, exist ...string) {
		t.Helper()
		if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{top, top + "/a", top + "/a/b", others} {
			if got, want := cgroup.Exists(path), slices.Contains(exist, path); got != want {
				t.Errorf("%s exists: %t, want %t", path, got, want)
			}
		}
	}
	first, second := run(top+"/a/b/pod1"), run(top+"/a/b/pod2")
	remove(first, top, top+"/a", top+"/a/b")
	remove(second)
	first = run(top + "/a/b/pod1")
	if err := cgroup.Create(others); err != nil {
		t.Fatal(err)
	}
	remove(first, top, top+"/a", others)
	first = run(top + "/a/b/pod1")
	n.kill()
	n.start()
	remove(first, top, top+"/a", top+"/a/b", others)
}

// TestStopInFrozenCgroup: somebody has frozen a cgroup above the container's. That of the pod is let go; one above is not the
// runtime's, and with cgroup v1 nothing ends in it: the status says so.
func TestStopInFrozenCgroup(t *testing.T) {
	n := newNode(t)
	const kubepods = "/criserver-e2e-frozen"
	const parent = kubepods + "/burstable/pod-a"
	if err := cgroup.Create(parent); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cgroup.Remove(kubepods); err != nil {
			t.Error(err)
		}
	})
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	podID := n.runPod(pod)
	start := func(name, frozen string) string {
		id := n.run(podID, pod, shell(name, "trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done"))
		eventually(t, "the trap is set", func() bool { return len(logLines(t, n.status(id).LogPath)) > 0 })
		if err := cgroup.Freeze(t.Context(), frozen); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cgroup.Thaw(frozen) })
		return id
	}
	stop := func(id string, grace int64, limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace})
		return err
	}
	graceful := start("graceful", parent)
	if err := stop(graceful, 10, 30*time.Second); err != nil || n.status(graceful).ExitCode != 6 {
		t.Errorf("the pod's cgroup is frozen: %v, %v", err, n.status(graceful))
	}
	killed := start("killed", parent)
	if err := stop(killed, 0, 30*time.Second); err != nil || n.status(killed).ExitCode != 137 {
		t.Errorf("the pod's cgroup is frozen, kill: %v, %v", err, n.status(killed))
	}
	held := start("held", kubepods)
	err := stop(held, 1, 8*time.Second)
	if pureV2() { // SIGKILL reaches frozen processes
		if err != nil || n.status(held).ExitCode != 137 {
			t.Errorf("a cgroup above the pod's is frozen: %v, %v", err, n.status(held))
		}
		return
	}
	if says := "cgroup " + kubepods + " is frozen"; err == nil || !strings.Contains(n.status(held).Message, says) {
		t.Errorf("a cgroup above the pod's is frozen: %v, message %q, want one that says %q", err, n.status(held).Message, says)
	}
	if err := cgroup.Thaw(kubepods); err != nil {
		t.Fatal(err)
	}
	if err := stop(held, 0, 30*time.Second); err != nil || n.status(held).ExitCode != 137 {
		t.Errorf("let go: %v, %v", err, n.status(held))
	}
}

// pid is the process of a container on the host.
func (n *node) pid(id string) int {
	n.t.Helper()
	r, err := n.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		n.t.Fatal(err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.PID == 0 {
		n.t.Fatalf("no pid in %v: %v", r.Info, err)
	}
	return info.PID
}

// A time that no clock can count is a long one, and not none: that of a command, which in nanoseconds would overflow to 0.29 s, and a grace.
func TestLongestTimes(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	id := n.run(n.runPod(pod), pod, shell("c", "trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done"))
	eventually(t, "the trap is set", func() bool { return len(logLines(t, n.status(id).LogPath)) > 0 })
	slow := &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "1"}, Timeout: 18446744074}
	if r, err := n.ExecSync(t.Context(), slow); err != nil || r.ExitCode != 0 {
		t.Errorf("a command: %v, %v", r, err)
	}
	start := time.Now()
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: math.MaxInt64}); err != nil {
		t.Fatal(err)
	}
	if st := n.status(id); st.ExitCode != 6 || time.Since(start) > 20*time.Second {
		t.Errorf("status = %v after %s", st, time.Since(start))
	}
}
