package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func limited(r *runtimeapi.LinuxContainerResources) containerChange {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r }
}

func pureV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// cgroupFile is a script that prints what is in a file of the container's cgroup, of v1 or of v2.
func cgroupFile(v1, v2 string) string {
	if pureV2() {
		return "cat /sys/fs/cgroup/" + v2
	}
	return "cat /sys/fs/cgroup/" + v1
}

// holds tells whether this process has a capability; the daemon, its child, has it then too.
func holds(t *testing.T, capability int) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "CapEff:\t")
	held, err := strconv.ParseUint(rest[:16], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return held>>capability&1 == 1
}

// lowestScore is the lowest oom_score_adj that the daemon may give: a child of this process, it has the same.
func lowestScore(t *testing.T) int {
	t.Helper()
	if holds(t, unix.CAP_SYS_RESOURCE) {
		return -1000
	}
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil {
		t.Fatal(err)
	}
	return score
}

func TestResourceFields(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	const mib = 1 << 20
	const score = "cat /proc/self/oom_score_adj"
	rows := map[string]fieldRow{
		"oom score":            {score, limited(&runtimeapi.LinuxContainerResources{OomScoreAdj: 985}), "985"},
		"oom score is clamped": {score, limited(&runtimeapi.LinuxContainerResources{OomScoreAdj: -998}), strconv.Itoa(max(-998, lowestScore(t)))},
		"cpuset":               {"grep -E 'Cpus_allowed_list|Mems_allowed_list' /proc/self/status | cut -f2", limited(&runtimeapi.LinuxContainerResources{CpusetCpus: "1", CpusetMems: "0"}), "1\n0"},
		"cpuset of ranges":     {"grep Cpus_allowed_list /proc/self/status | cut -f2", limited(&runtimeapi.LinuxContainerResources{CpusetCpus: "0-1,1"}), "0-1"},
		"unlimited":            {cgroupFile("cpu/cpu.cfs_quota_us", "cpu.max"), limited(&runtimeapi.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 50000}), map[bool]string{false: "-1", true: "max 50000"}[pureV2()]},
	}
	rows["shares"] = fieldRow{"cat /sys/fs/cgroup/cpu/cpu.shares", limited(&runtimeapi.LinuxContainerResources{CpuShares: 512}), "512"}
	rows["period"] = fieldRow{cgroupFile("cpu/cpu.cfs_period_us", "cpu.max"), limited(&runtimeapi.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 50000}), "50000"}
	if pureV2() {
		// Runtimes of 2025 and later have another conversion, by which 1024 shares are a weight of 100.
		rows["shares"] = fieldRow{"sed 's/^59$/20/' /sys/fs/cgroup/cpu.weight", rows["shares"].change, "20"}
		rows["period"] = fieldRow{rows["period"].script, rows["period"].change, "20000 50000"}
		rows["unified"] = fieldRow{"cat /sys/fs/cgroup/memory.high", limited(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "67108864"}}), "67108864"}
		rows["unified wins"] = fieldRow{"cat /sys/fs/cgroup/memory.max", limited(&runtimeapi.LinuxContainerResources{
			MemoryLimitInBytes: 128 * mib, Unified: map[string]string{"memory.max": "67108864"}}), "67108864"}
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); err == nil {
		const both = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
		rows["no swap"] = fieldRow{both, limited(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib}), "67108864\n67108864"}
		rows["swap"] = fieldRow{both, limited(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib}), "67108864\n100663296"}
	} else if pureV2() {
		const both = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.swap.max"
		rows["no swap"] = fieldRow{both, limited(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib}), "67108864\n0"}
		rows["swap"] = fieldRow{both, limited(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib}), "67108864\n33554432"}
	}
	if files := []string{"/sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes", "/sys/kernel/mm/hugepages/hugepages-2048kB"}; exists(files[0]) || pureV2() && exists(files[1]) {
		rows["huge pages"] = fieldRow{cgroupFile("hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"), limited(&runtimeapi.LinuxContainerResources{
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 * mib}}}), strconv.Itoa(4 * mib)}
	}
	n.checkFields(t, programs, rows)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestResourceRefusals(t *testing.T) {
	n := newNode(t)
	rows := map[string]refusalRow{}
	for field, values := range map[string][]*runtimeapi.LinuxContainerResources{
		"resources.cpu_period":                 {{CpuPeriod: 999}, {CpuPeriod: 1000001}},
		"resources.cpu_quota":                  {{CpuQuota: 999}, {CpuQuota: -2}, {CpuQuota: 1 << 60}},
		"resources.cpu_shares":                 {{CpuShares: -1}, {CpuShares: 1}, {CpuShares: 300000}},
		"resources.memory_limit_in_bytes":      {{MemoryLimitInBytes: -2}, {MemoryLimitInBytes: 1}, {MemoryLimitInBytes: 5<<19 - 1}},
		"resources.memory_swap_limit_in_bytes": {{MemorySwapLimitInBytes: 1 << 30}, {MemoryLimitInBytes: 1 << 30, MemorySwapLimitInBytes: 1 << 29}},
		"resources.oom_score_adj":              {{OomScoreAdj: 1001}, {OomScoreAdj: -1001}},
		"resources.cpuset_cpus":                {{CpusetCpus: "0-4095"}, {CpusetCpus: "x"}, {CpusetCpus: "1-0"}},
		"resources.cpuset_mems":                {{CpusetMems: "77"}, {CpusetMems: "-"}},
		"resources.hugepage_limits.page_size":  {{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 3 << 20}}}},
		"resources.unified":                    {{Unified: map[string]string{"../cgroup.procs": "1"}}, {Unified: map[string]string{"high": "1"}}},
	} {
		for i, r := range values {
			rows[fmt.Sprintf("%s %d", field, i)] = refusalRow{limited(r), codes.InvalidArgument, field + ": "}
		}
	}
	if !pureV2() && !exists("/sys/fs/cgroup/hugetlb") {
		rows["huge pages without a controller"] = refusalRow{limited(&runtimeapi.LinuxContainerResources{
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}}), codes.InvalidArgument, "resources.hugepage_limits: "}
	}
	if !pureV2() && !exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes") {
		rows["swap without accounting"] = refusalRow{limited(&runtimeapi.LinuxContainerResources{
			MemoryLimitInBytes: 1 << 30, MemorySwapLimitInBytes: 2 << 30}), codes.InvalidArgument, "resources.memory_swap_limit_in_bytes: "}
	}
	if !pureV2() {
		rows["unified on v1"] = refusalRow{limited(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}}), codes.InvalidArgument, "cgroup v1"}
	}
	n.checkRefusals(t, n.podConfig(), rows)
	// The kubelet's zeros, of a page size that no node has too.
	n.checkFields(t, nil, map[string]fieldRow{"no huge pages": {"echo runs", limited(&runtimeapi.LinuxContainerResources{
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "3MB"}}}), "runs"}})
}

// TestLeastMemory has the lowest limits with which the runtimes start a container, and lower ones.
func TestLeastMemory(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		// None starts with the lower one, and each with the higher one, with cgroup v2 and on a slow machine too.
		low, enough := int64(9<<18-1), int64(8<<20)
		switch handler {
		case "builtin":
			low = 5<<19 - 1
		case "crun":
			low, enough = 3<<17-1, 1<<20
		}
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		_, err := n.create(podID, pod, shell("low", "true", limited(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: low})))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "resources.memory_limit_in_bytes: ") {
			t.Errorf("with %d: %v", low, err)
		}
		if out, code := n.output(podID, pod, shell("least", "echo starts", limited(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: enough}))); out != "starts" {
			t.Errorf("with %d: %q, code %d", enough, out, code)
		}
	})
}
