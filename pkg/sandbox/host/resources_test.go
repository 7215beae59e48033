package host

import (
	"errors"
	"strings"
	"testing"

	"criserver/pkg/sandbox/spec"
)

func TestCheckPod(t *testing.T) {
	good, bad := &spec.Resources{MemoryLimit: 1 << 30, CPUQuota: -1}, &spec.Resources{CPUPeriod: 5}
	for field, row := range map[string][2]*spec.Resources{
		"":                                {good, good},
		"resources.cpu_period":            {bad, good},
		"overhead.cpu_period":             {nil, bad},
		"overhead.oom_score_adj":          {nil, {OOMScoreAdj: 1001}},
		"resources.cpuset_cpus":           {{CpusetCPUs: "65535"}, nil},
		"resources.memory_limit_in_bytes": {{MemoryLimit: -7}, nil},
	} {
		err := CheckPod(row[0], row[1])
		if field == "" && err != nil || field != "" && (!errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), field+": ")) {
			t.Errorf("%q: %v", field, err)
		}
	}
}

func TestCheckResources(t *testing.T) {
	v1, v2 := facts{pageSizes: []string{"2MB"}, hugepages: true}, facts{pageSizes: []string{"2MB"}, unified: true}
	huge := func(size string, limit uint64) spec.Resources {
		return spec.Resources{HugepageLimits: map[string]uint64{size: limit, "1GB": 0}}
	}
	for _, row := range []struct {
		field string
		in    spec.Resources
		node  facts
	}{
		{"", spec.Resources{}, v1},
		{"", spec.Resources{MemoryLimit: -1, CpusetCPUs: "0", CpusetMems: "0"}, v1},
		{"", spec.Resources{Unified: map[string]string{"memory.high": "1"}}, v2},
		{"resources.unified", spec.Resources{Unified: map[string]string{"memory.high": "1"}}, v1},
		{"", huge("2MB", 2<<20), v1},
		{"", huge("2MB", 0), v2},
		{"", huge("3MB", 0), v1},
		{"resources.hugepage_limits.page_size", huge("3MB", 3<<20), v1},
		{"resources.hugepage_limits", huge("2MB", 2<<20), v2},
		{"resources.cpuset_cpus", spec.Resources{CpusetCPUs: "0-65535"}, v2},
		{"resources.cpuset_cpus", spec.Resources{CpusetCPUs: "0,65535"}, v2},
	} {
		err := row.node.check(row.in)
		if row.field == "" && err == nil {
			continue
		}
		if row.field == "" || !errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), row.field+": ") {
			t.Errorf("%+v: %v, want an error of %q", row.in, err, row.field)
		}
	}
}

// A limit of nothing is not handed to who would look for its file.
func TestZeroHugepages(t *testing.T) {
	in := spec.Resources{HugepageLimits: map[string]uint64{"2MB": 0, "1GB": 0}}
	for _, row := range []struct {
		node facts
		want int
	}{{facts{}, 0}, {facts{pageSizes: []string{"2MB"}}, 0}, {facts{pageSizes: []string{"2MB"}, hugepages: true}, 1}} {
		out, err := row.node.possible(in)
		if err != nil || len(out.HugepageLimits) != row.want || len(in.HugepageLimits) != 2 {
			t.Errorf("%+v: %v, %v", row.node, out.HugepageLimits, err)
		}
	}
}
