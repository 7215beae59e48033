package host

import (
	"errors"
	"strings"
	"testing"

	"criserver/pkg/sandbox/spec"
)

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
		{"resources.memory_limit_in_bytes", spec.Resources{MemoryLimit: leastMemory - 1}, true},
		{"resources.hugepage_limits.page_size", spec.Resources{HugepageLimits: map[string]uint64{"3MB": 0}}, true},
		{"resources.cpuset_cpus", spec.Resources{CpusetCPUs: "0-65535"}, true},
		{"resources.cpuset_cpus", spec.Resources{CpusetCPUs: "0,65535"}, true},
	} {
		err := errors.Join(checkStart(row.in), checkResources(row.in, row.unified))
		if row.field == "" && err == nil {
			continue
		}
		if row.field == "" || !errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), row.field+": ") {
			t.Errorf("%+v: %v, want an error of %q", row.in, err, row.field)
		}
	}
}
