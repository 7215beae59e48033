package spec

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func setResources(s *specs.Spec, _ Pod, c Container) error {
	r, err := LinuxResources(c.Resources, c.SwapAccounting)
	s.Linux.Resources = r
	return err
}

// LinuxResources turns limits into those of the OCI specification, for a new container or the update of one; devices
// are not part of it. A memory limit without a swap limit forbids swap, as Kubernetes expects. Without swapAccounting
// (a kernel that cannot limit swap) there is never a swap limit, and one that allows some swap and no more is refused.
func LinuxResources(r Resources, swapAccounting bool) (*specs.LinuxResources, error) {
	if err := checkResources(r); err != nil {
		return nil, err
	}
	swap := r.MemorySwap
	if swap == 0 {
		swap = r.MemoryLimit
	}
	if !swapAccounting {
		// As runc on cgroup v2: what forbids swap is what every container is to have, and unlimited is what it gets.
		if swap > 0 && swap != r.MemoryLimit {
			return nil, Invalidf("resources.memory_swap_limit_in_bytes", "%d: the node's kernel does not account swap, "+
				"so that it cannot be limited (boot parameter swapaccount=1)", swap)
		}
		swap = 0
	}
	out := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{
			Shares: unsignedIfSet(r.CPUShares), Quota: ifSet(r.CPUQuota), Period: unsignedIfSet(r.CPUPeriod),
			Cpus: r.CpusetCPUs, Mems: r.CpusetMems,
		},
		Memory:  &specs.LinuxMemory{Limit: ifSet(r.MemoryLimit), Swap: ifSet(swap)},
		Unified: maps.Clone(r.Unified),
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageLimits)) {
		out.HugepageLimits = append(out.HugepageLimits,
			specs.LinuxHugepageLimit{Pagesize: size, Limit: r.HugepageLimits[size]})
	}
	return out, nil
}

// With returns the limits after the update change: what it leaves unset stays. Memory and swap limits go together, as at the
// creation: a new memory limit alone forbids swap.
func (r Resources) With(change Resources) Resources {
	out := r
	out.CPUPeriod = cmp.Or(change.CPUPeriod, r.CPUPeriod)
	out.CPUQuota = cmp.Or(change.CPUQuota, r.CPUQuota)
	out.CPUShares = cmp.Or(change.CPUShares, r.CPUShares)
	out.CpusetCPUs = cmp.Or(change.CpusetCPUs, r.CpusetCPUs)
	out.CpusetMems = cmp.Or(change.CpusetMems, r.CpusetMems)
	out.OOMScoreAdj = cmp.Or(change.OOMScoreAdj, r.OOMScoreAdj)
	if change.MemoryLimit != 0 || change.MemorySwap != 0 {
		out.MemoryLimit, out.MemorySwap = cmp.Or(change.MemoryLimit, r.MemoryLimit), change.MemorySwap
	}
	out.HugepageLimits = merged(r.HugepageLimits, change.HugepageLimits)
	out.Unified = merged(r.Unified, change.Unified)
	return out
}

func merged[V any](old, change map[string]V) map[string]V {
	if len(change) == 0 {
		return old
	}
	out := maps.Clone(change)
	for k, v := range old {
		if _, ok := out[k]; !ok {
			out[k] = v
		}
	}
	return out
}

func checkResources(r Resources) error {
	const cpuMin, periodMax = 1000, 1_000_000 // µs, kernel/sched/core.c: min_cfs_quota_period, max_cfs_quota_period
	const quotaMax = 1<<44 - 1                // µs, kernel/sched/sched.h: MAX_BW
	const sharesMin, sharesMax = 2, 1 << 18   // kernel/sched/sched.h: MIN_SHARES, MAX_SHARES; it clamps others without a word
	const scoreMax = 1000                     // proc_pid_oom_score_adj(5)
	switch {
	case r.CPUPeriod != 0 && (r.CPUPeriod < cpuMin || r.CPUPeriod > periodMax):
		return Invalidf("resources.cpu_period", "%d is not from %d to %d µs", r.CPUPeriod, cpuMin, periodMax)
	case r.CPUQuota < -1 || r.CPUQuota > 0 && r.CPUQuota < cpuMin || r.CPUQuota > quotaMax:
		return Invalidf("resources.cpu_quota", "%d is neither -1 nor from %d to %d µs", r.CPUQuota, cpuMin, quotaMax)
	case r.OOMScoreAdj < -scoreMax || r.OOMScoreAdj > scoreMax:
		return Invalidf("resources.oom_score_adj", "%d is not from %d to %d", r.OOMScoreAdj, -scoreMax, scoreMax)
	case r.CPUShares != 0 && (r.CPUShares < sharesMin || r.CPUShares > sharesMax):
		return Invalidf("resources.cpu_shares", "%d is not from %d to %d", r.CPUShares, sharesMin, sharesMax)
	case r.MemoryLimit < -1:
		return Invalidf("resources.memory_limit_in_bytes", "%d is negative", r.MemoryLimit)
	case r.MemorySwap < -1:
		return Invalidf("resources.memory_swap_limit_in_bytes", "%d is negative", r.MemorySwap)
	case r.MemorySwap > 0 && (r.MemoryLimit <= 0 || r.MemorySwap < r.MemoryLimit):
		return Invalidf("resources.memory_swap_limit_in_bytes", "%d is of memory and swap together, "+
			"and the limit of memory alone is %d", r.MemorySwap, r.MemoryLimit)
	}
	for field, set := range map[string]string{"resources.cpuset_cpus": r.CpusetCPUs, "resources.cpuset_mems": r.CpusetMems} {
		if set == "" {
			continue
		}
		if _, err := ParseSet(set); err != nil {
			return Invalidf(field, "%v", err)
		}
	}
	for file := range r.Unified {
		if controller, parameter, ok := strings.Cut(file, "."); !ok || controller == "" || parameter == "" || strings.Contains(file, "/") {
			return Invalidf("resources.unified", "%q is not the name of a file such as memory.high", file)
		}
	}
	return nil
}

func ifSet(v int64) *int64 {
	if v == 0 {
		return nil
	}
	return &v
}

func unsignedIfSet(v int64) *uint64 {
	if v == 0 {
		return nil
	}
	u := uint64(v)
	return &u
}
