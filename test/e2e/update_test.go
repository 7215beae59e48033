package e2e

import (
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestUpdateContainerResources changes limits as the kubelet does at an in-place resize, and looks from inside.
func TestUpdateContainerResources(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("c", "while :; do sleep 0.1; done", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, MemoryLimitInBytes: 64 << 20}
	}))
	update := func(r *runtimeapi.LinuxContainerResources) error {
		_, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
		return err
	}
	check := func(when, want string) {
		t.Helper()
		if out, _ := n.exec(id, readLimits); out != want {
			t.Errorf("%s: limits are %q, want %q", when, out, want)
		}
	}
	check("at first", "67108864 20000")
	if err := update(&runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	check("more", "134217728 50000")
	for name, row := range map[string]struct {
		r     *runtimeapi.LinuxContainerResources
		code  codes.Code
		names string
	}{
		"nothing":         {nil, codes.InvalidArgument, "linux"},
		"memory in use":   {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, MemoryLimitInBytes: 4096}, codes.FailedPrecondition, "in use"},
		"negative memory": {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, MemoryLimitInBytes: -7}, codes.InvalidArgument, "memory_limit_in_bytes"},
		"swap below":      {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, MemorySwapLimitInBytes: 4096}, codes.InvalidArgument, "memory_swap_limit_in_bytes"},
		"CPUs":            {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, CpusetCpus: "900"}, codes.InvalidArgument, "cpuset_cpus"},
		"CPU list":        {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, CpusetCpus: "a"}, codes.InvalidArgument, "cpuset_cpus"},
		"oom score":       {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, OomScoreAdj: 1001}, codes.InvalidArgument, "oom_score_adj"},
		"few shares":      {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, CpuShares: 1}, codes.InvalidArgument, "cpu_shares"},
		"many shares":     {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, CpuShares: 300000}, codes.InvalidArgument, "cpu_shares"},
		"quota":           {&runtimeapi.LinuxContainerResources{CpuQuota: 1 << 60}, codes.InvalidArgument, "cpu_quota"},
		"page size": {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 3 << 20}}},
			codes.InvalidArgument, "hugepage_limits"},
		"period":  {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, CpuPeriod: 5}, codes.InvalidArgument, "cpu_period"},
		"unified": {&runtimeapi.LinuxContainerResources{CpuQuota: 30000, Unified: map[string]string{"cgroup.procs": "1"}}, codes.InvalidArgument, "unified"},
	} {
		if err := update(row.r); status.Code(err) != row.code || !strings.Contains(err.Error(), row.names) {
			t.Errorf("%s: err = %v, want %s that names %q", name, err, row.code, row.names)
		}
	}
	check("after refusals", "134217728 50000")
	n.kill()
	n.start()
	r := n.status(id).GetResources().GetLinux()
	if r.GetMemoryLimitInBytes() != 128<<20 || r.GetCpuQuota() != 50000 {
		t.Errorf("the status after a restart tells of %v", r)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if err := update(&runtimeapi.LinuxContainerResources{CpuQuota: 30000}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("update of a container that has exited: %v", err)
	}
	id = "nobody"
	if err := update(&runtimeapi.LinuxContainerResources{CpuQuota: 30000}); status.Code(err) != codes.NotFound {
		t.Errorf("update of an unknown container: %v", err)
	}
	limits := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 30}
	for names, r := range map[string]*runtimeapi.UpdatePodSandboxResourcesRequest{
		"resources.memory_limit_in_bytes": {Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -7}},
		"resources.cpu_period":            {Resources: &runtimeapi.LinuxContainerResources{CpuPeriod: 5}, Overhead: limits},
		"overhead.cpu_period":             {Resources: limits, Overhead: &runtimeapi.LinuxContainerResources{CpuPeriod: 5}},
		"overhead.cpuset_cpus":            {Overhead: &runtimeapi.LinuxContainerResources{CpusetCpus: "a"}},
		"resources.cpu_shares":            {Resources: &runtimeapi.LinuxContainerResources{CpuShares: 300000}},
	} {
		r.PodSandboxId = podID
		if _, err := n.UpdatePodSandboxResources(t.Context(), r); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), names) {
			t.Errorf("update of a pod: %v, want an error that names %s", err, names)
		}
	}
	for sandbox, code := range map[string]codes.Code{podID: codes.OK, "nobody": codes.NotFound} {
		if _, err := n.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: sandbox, Resources: limits,
		}); status.Code(err) != code {
			t.Errorf("update of pod %s: %v", sandbox, err)
		}
	}
}

// TestUpdateOOMScore changes the score of all processes of a container, as the kubelet does when the memory request changes.
func TestUpdateOOMScore(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		id := n.run(podID, pod, shell("c", "sleep 1000 & sleep 1000 & while :; do sleep 0.05; done", func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 900, CpuShares: 100}
		}))
		update := func(score int64) {
			t.Helper()
			_, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{OomScoreAdj: score, CpuShares: 200},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		check := func(when string, want int) {
			t.Helper()
			script := "cat /proc/[0-9]*/oom_score_adj 2>/dev/null | sort | uniq"
			if handler != "builtin" {
				script = "sleep 0.3; " + script // a program starts commands as the container was made
			}
			if out, _ := n.exec(id, script); out != strconv.Itoa(want) {
				t.Errorf("%s: the processes, and a command, have the scores %q, want %d", when, out, want)
			}
			if got := n.status(id).GetResources().GetLinux().GetOomScoreAdj(); got != int64(want) {
				t.Errorf("%s: the status has %d, want %d", when, got, want)
			}
		}
		check("at first", 900)
		update(500)
		check("lower", 500)
		update(0)
		check("unset", 500)
		n.kill()
		n.start()
		update(950)
		check("higher, after a restart", 950)
		update(-997)
		if out, _ := n.exec(id, "sleep 0.3; cat /proc/1/oom_score_adj /proc/self/oom_score_adj | uniq"); out != strconv.Itoa(max(-997, lowestScore(t))) {
			t.Errorf("as low as it may be: %q", out)
		}
	})
}
