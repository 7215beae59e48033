package limit

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// For plans the change of the limits of the cgroup at path to those that r has; what r does not have stays. path is absolute
// within each hierarchy. ErrInUse, ErrRefused; of r, CPU, memory, hugepages and unified count.
func For(path string, r *specs.LinuxResources) (Plan, error) {
	p := &plan{}
	if hierarchy.Unified() {
		p.unified(hierarchy.Dir("", path), r)
	} else {
		p.legacy(func(controller string) string { return hierarchy.Dir(controller, path) }, r)
	}
	if p.err != nil {
		return nil, fmt.Errorf("plan limits of cgroup %s: %w", path, p.err)
	}
	return p.writes, nil
}

// legacy plans for cgroup v1; dir is the cgroup's directory in the hierarchy of a controller.
func (p *plan) legacy(dir func(controller string) string, r *specs.LinuxResources) {
	if len(r.Unified) > 0 {
		p.err = fmt.Errorf("unified: %w: this machine runs cgroup v1", ErrRefused)
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil {
			p.set(dir("cpu"), "cpu.shares", strconv.FormatUint(*c.Shares, 10))
		}
		p.legacyQuota(dir("cpu"), c)
		p.cpuset(dir("cpuset"), c)
	}
	if m := r.Memory; m != nil {
		p.legacyMemory(dir("memory"), m)
	}
	p.hugepages(dir("hugetlb"), "limit_in_bytes", r.HugepageLimits)
}

// legacyQuota writes period and quota in the order in which the share of a CPU in between is below both the old and the
// new one or between them: the kernel refuses more than the parent has (kernel/sched/core.c, __cfs_schedulable).
func (p *plan) legacyQuota(dir string, c *specs.LinuxCPU) {
	const quotaFile, periodFile = "cpu.cfs_quota_us", "cpu.cfs_period_us"
	var quota, period func()
	if c.Quota != nil {
		quota = func() { p.set(dir, quotaFile, strconv.FormatInt(*c.Quota, 10)) }
	}
	if c.Period != nil {
		period = func() { p.set(dir, periodFile, strconv.FormatUint(*c.Period, 10)) }
	}
	first, second := period, quota
	if quota != nil && period != nil {
		oldQuota, oldPeriod := p.number(dir, quotaFile), p.number(dir, periodFile)
		// oldQuota/newPeriod against newQuota/oldPeriod; a negative quota is none at all.
		if *c.Quota < 0 || oldQuota >= 0 && float64(oldQuota)*float64(oldPeriod) > float64(*c.Quota)*float64(*c.Period) {
			first, second = quota, period
		}
	}
	for _, set := range []func(){first, second} {
		if set != nil {
			set()
		}
	}
}

// legacyMemory keeps the kernel's rule that memory and swap together are never less than memory alone: it raises the one
// first and lowers the other first.
func (p *plan) legacyMemory(dir string, m *specs.LinuxMemory) {
	const limitFile, bothFile = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	limit := func() {}
	if m.Limit != nil {
		p.checkUsage(dir, "memory.usage_in_bytes", *m.Limit)
		limit = func() { p.set(dir, limitFile, strconv.FormatInt(*m.Limit, 10)) }
	}
	if m.Swap == nil {
		limit()
		return
	}
	both := func() { p.set(dir, bothFile, strconv.FormatInt(*m.Swap, 10)) }
	if old := p.number(dir, bothFile); *m.Swap < 0 || old >= 0 && *m.Swap > old {
		both()
		limit()
		return
	}
	limit()
	both()
}

func (p *plan) cpuset(dir string, c *specs.LinuxCPU) {
	if c.Cpus != "" {
		p.set(dir, "cpuset.cpus", c.Cpus)
	}
	if c.Mems != "" {
		p.set(dir, "cpuset.mems", c.Mems)
	}
}

// hugepages writes the limits of use and, where the kernel has them, of reservations (hugetlb.rst).
func (p *plan) hugepages(dir, suffix string, limits []specs.LinuxHugepageLimit) {
	for _, l := range limits {
		if strings.Contains(l.Pagesize, "/") {
			p.err = fmt.Errorf("hugepage_limits: %w: page size %q", ErrRefused, l.Pagesize)
			return
		}
		value := strconv.FormatUint(l.Limit, 10)
		p.set(dir, "hugetlb."+l.Pagesize+"."+suffix, value)
		p.set(dir, "hugetlb."+l.Pagesize+".rsvd."+suffix, value, true)
	}
}

// unified plans for cgroup v2.
func (p *plan) unified(dir string, r *specs.LinuxResources) {
	if c := r.CPU; c != nil {
		if c.Shares != nil {
			p.set(dir, "cpu.weight", strconv.FormatUint(cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares), 10))
		}
		p.unifiedQuota(dir, c)
		p.cpuset(dir, c)
	}
	if m := r.Memory; m != nil {
		p.unifiedMemory(dir, m)
	}
	p.hugepages(dir, "max", r.HugepageLimits)
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		p.override(dir, file, r.Unified[file])
	}
}

func (p *plan) unifiedQuota(dir string, c *specs.LinuxCPU) {
	if c.Quota == nil && c.Period == nil {
		return
	}
	const file = "cpu.max"
	now, err := read(filepath.Join(dir, file))
	quota, period, ok := strings.Cut(now, " ")
	if err != nil || !ok {
		p.set(dir, file, "") // tells what is wrong
		return
	}
	if c.Quota != nil {
		quota = maximum(*c.Quota)
	}
	if c.Period != nil {
		period = strconv.FormatUint(*c.Period, 10)
	}
	p.set(dir, file, quota+" "+period)
}

func (p *plan) unifiedMemory(dir string, m *specs.LinuxMemory) {
	if m.Limit == nil {
		return
	}
	p.checkUsage(dir, "memory.current", *m.Limit)
	if m.Swap != nil && p.err == nil {
		swap, err := cgroups.ConvertMemorySwapToCgroupV2Value(*m.Swap, *m.Limit)
		if err != nil {
			p.err = fmt.Errorf("memory_swap_limit_in_bytes: %w: %w", ErrRefused, err)
			return
		}
		p.set(dir, "memory.swap.max", maximum(swap), true)
	}
	p.set(dir, "memory.max", maximum(*m.Limit))
}

// override lets a file of the unified map win over the limits that were planned before.
func (p *plan) override(dir, file, value string) {
	if strings.Contains(file, "/") || !strings.Contains(file, ".") || strings.HasPrefix(file, "cgroup.") {
		p.err = fmt.Errorf("unified: %w: %q is no limit of a controller, such as \"memory.high\"", ErrRefused, file)
		return
	}
	p.writes = slices.DeleteFunc(p.writes, func(w Write) bool { return w.File == filepath.Join(dir, file) })
	if limit := parse(value); file == "memory.max" && limit > 0 {
		p.checkUsage(dir, "memory.current", limit)
	}
	p.set(dir, file, value)
}

func parse(text string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func maximum(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}
