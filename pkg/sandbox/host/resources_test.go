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
	for _, row := range []struct {
		field   string
		in      spec.Resources
		unified bool
	}{
		{"", spec.Resources{}, false},
		{"", spec.Resources{MemoryLimit: -1, CpusetCPUs: "0", CpusetMems: "0"}, false},
		{"", spec.Resources{Unified: map[string]string{"memory.high": "1"}}, true},
		{"resources.unified", spec.Resources{Unified: map[string]string{"memory.high": "1"}}, false},
		{"resources.hugepage_limits.page_size", spec.Resources{HugepageLimits: map[string]uint64{"3MB": 0}}, true},
		{"resources.cpuset_cpus", spec.Resources{CpusetCPUs: "0-65535"}, true},
		{"resources.cpuset_cpus", spec.Resources{CpusetCPUs: "0,65535"}, true},
	} {
		err := checkResources(row.in, row.unified)
		if row.field == "" && err == nil {
			continue
		}
		if row.field == "" || !errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), row.field+": ") {
			t.Errorf("%+v: %v, want an error of %q", row.in, err, row.field)
		}
	}
}
