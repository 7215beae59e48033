package spec

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestLinuxResources(t *testing.T) {
	for name, tc := range map[string]struct {
		in   Resources
		swap bool
		want string
	}{
		"none": {Resources{}, true, `{"memory":{},"cpu":{}}`},
		"all": {Resources{CPUPeriod: 100000, CPUQuota: -1, CPUShares: 2, MemoryLimit: 100, MemorySwap: 150, CpusetCPUs: "0-1,3", CpusetMems: "0"}, true,
			`{"memory":{"limit":100,"swap":150},"cpu":{"shares":2,"quota":-1,"period":100000,"cpus":"0-1,3","mems":"0"}}`},
		"no swap by default":     {Resources{MemoryLimit: 100}, true, `{"memory":{"limit":100,"swap":100},"cpu":{}}`},
		"no swap accounting":     {Resources{MemoryLimit: 100, MemorySwap: 100}, false, `{"memory":{"limit":100},"cpu":{}}`},
		"unlimited, unaccounted": {Resources{MemoryLimit: 100, MemorySwap: -1}, false, `{"memory":{"limit":100},"cpu":{}}`},
		"unset, unaccounted":     {Resources{MemoryLimit: 100}, false, `{"memory":{"limit":100},"cpu":{}}`},
		"unlimited":              {Resources{MemoryLimit: -1}, true, `{"memory":{"limit":-1,"swap":-1},"cpu":{}}`},
		"unlimited swap":         {Resources{MemoryLimit: 100, MemorySwap: -1}, true, `{"memory":{"limit":100,"swap":-1},"cpu":{}}`},
		"unified and hugepages":  {Resources{Unified: map[string]string{"memory.high": "5"}, HugepageLimits: map[string]uint64{"2MB": 0, "1GB": 1 << 30}}, true, `{"memory":{},"cpu":{},"hugepageLimits":[{"pageSize":"1GB","limit":1073741824},{"pageSize":"2MB","limit":0}],"unified":{"memory.high":"5"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := LinuxResources(tc.in, tc.swap)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestLinuxResourcesErrors(t *testing.T) {
	for _, tc := range []struct {
		field string
		in    Resources
	}{
		{"resources.cpu_period", Resources{CPUPeriod: 999}},
		{"resources.cpu_period", Resources{CPUPeriod: 1_000_001}},
		{"resources.cpu_quota", Resources{CPUQuota: -2}},
		{"resources.cpu_quota", Resources{CPUQuota: 999}},
		{"resources.cpu_quota", Resources{CPUQuota: 1 << 44}},
		{"resources.cpu_shares", Resources{CPUShares: -1}},
		{"resources.cpu_shares", Resources{CPUShares: 1}},
		{"resources.cpu_shares", Resources{CPUShares: 1<<18 + 1}},
		{"resources.memory_limit_in_bytes", Resources{MemoryLimit: -2}},
		{"resources.memory_swap_limit_in_bytes", Resources{MemoryLimit: 10, MemorySwap: -2}},
		{"resources.memory_swap_limit_in_bytes", Resources{MemoryLimit: 10, MemorySwap: 9}},
		{"resources.memory_swap_limit_in_bytes", Resources{MemorySwap: 9}},
		{"resources.cpuset_cpus", Resources{CpusetCPUs: "0-3;4"}},
		{"resources.cpuset_cpus", Resources{CpusetCPUs: "-3"}},
		{"resources.cpuset_cpus", Resources{CpusetCPUs: "3-1"}},
		{"resources.cpuset_cpus", Resources{CpusetCPUs: "0,"}},
		{"resources.cpuset_mems", Resources{CpusetMems: "all"}},
		{"resources.unified", Resources{Unified: map[string]string{"../memory.high": "1"}}},
		{"resources.unified", Resources{Unified: map[string]string{"high": "1"}}},
	} {
		_, err := LinuxResources(tc.in, true)
		if err == nil || !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), tc.field+": ") {
			t.Errorf("%+v: error %v does not name %s", tc.in, err, tc.field)
		}
		wantError(t, tc.field, func(_ *Pod, c *Container) { c.Resources = tc.in })
	}
}

func TestSwapWithoutAccounting(t *testing.T) {
	_, err := LinuxResources(Resources{MemoryLimit: 100, MemorySwap: 150}, false)
	if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "resources.memory_swap_limit_in_bytes: ") {
		t.Errorf("a limit that the kernel cannot set: %v", err)
	}
}

func TestCgroupPath(t *testing.T) {
	s := build(t, func(p *Pod, c *Container) { p.CgroupPath, c.ID = "/kubepods/pod1", "abc" })
	if s.Linux.CgroupsPath != "/kubepods/pod1/abc" {
		t.Errorf("got %s", s.Linux.CgroupsPath)
	}
}

func TestOOMScore(t *testing.T) {
	for _, tc := range []struct {
		adj      int64
		min      int
		mayLower bool
		want     int
	}{
		{985, 0, false, 985}, {-997, 0, false, 0}, {-997, -500, false, -500}, {-997, 0, true, -997}, {0, 200, false, 200},
	} {
		s := build(t, func(_ *Pod, c *Container) {
			c.Resources.OOMScoreAdj, c.MinOOMScoreAdj, c.MayLowerOOMScore = tc.adj, tc.min, tc.mayLower
		})
		if got := *s.Process.OOMScoreAdj; got != tc.want {
			t.Errorf("%+v: got %d", tc, got)
		}
	}
	for _, bad := range []int64{-1001, 1001} {
		wantError(t, "resources.oom_score_adj", func(_ *Pod, c *Container) { c.Resources.OOMScoreAdj = bad })
	}
}

func TestUpdateLeavesWhatItDoesNotHave(t *testing.T) {
	old := Resources{
		CPUPeriod: 100_000, CPUQuota: 50_000, CPUShares: 512, MemoryLimit: 100, MemorySwap: 200, CpusetCPUs: "0", CpusetMems: "0",
		OOMScoreAdj: 7, HugepageLimits: map[string]uint64{"2MB": 1}, Unified: map[string]string{"memory.high": "1"},
	}
	if got := old.With(Resources{}); !reflect.DeepEqual(got, old) {
		t.Errorf("an empty update made %+v", got)
	}
	got := old.With(Resources{
		CPUQuota: -1, MemoryLimit: 300, OOMScoreAdj: 9, HugepageLimits: map[string]uint64{"1GB": 2}, Unified: map[string]string{"memory.high": "2"},
	})
	want := old
	want.CPUQuota, want.MemoryLimit, want.MemorySwap, want.OOMScoreAdj = -1, 300, 0, 9
	want.HugepageLimits = map[string]uint64{"2MB": 1, "1GB": 2}
	want.Unified = map[string]string{"memory.high": "2"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if old.Unified["memory.high"] != "1" || len(old.HugepageLimits) != 1 {
		t.Errorf("the old limits were changed: %+v", old)
	}
	if got := old.With(Resources{MemorySwap: 400}); got.MemoryLimit != 100 || got.MemorySwap != 400 {
		t.Errorf("a swap limit alone made %+v", got)
	}
}
