package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"criserver/pkg/sandbox/spec"
)

// CheckPod refuses limits of a pod that no container could have, with a spec.FieldError; nil are none.
func CheckPod(resources, overhead *spec.Resources) error {
	for part, r := range map[string]*spec.Resources{"resources": resources, "overhead": overhead} {
		if r == nil {
			continue
		}
		_, err := Limits(*r)
		if f, ok := errors.AsType[*spec.FieldError](err); ok {
			return &spec.FieldError{Field: part + strings.TrimPrefix(f.Field, "resources"), Reason: f.Reason}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// check refuses what this machine cannot limit.
func (f facts) check(r spec.Resources) error {
	if len(r.Unified) > 0 && !f.unified {
		return spec.Invalidf("resources.unified", "%v: the node runs cgroup v1, which has no such files", r.Unified)
	}
	for size, limit := range r.HugepageLimits {
		switch {
		case limit == 0: // nothing is wanted, and of what the node does not have nobody gets anything
		case !slices.Contains(f.pageSizes, size):
			return spec.Invalidf("resources.hugepage_limits.page_size", "%q is none of the node's: %s", size, strings.Join(f.pageSizes, ", "))
		case !f.hugepages:
			return spec.Invalidf("resources.hugepage_limits", "%d bytes of %s: the node has no hugetlb controller", limit, size)
		}
	}
	if err := checkSet("resources.cpuset_cpus", r.CpusetCPUs, "/sys/devices/system/cpu/online"); err != nil {
		return err
	}
	return checkSet("resources.cpuset_mems", r.CpusetMems, "/sys/devices/system/node/online")
}

// checkSet refuses numbers that are not in the kernel's list: a write of them to a cpuset fails with no more than "numerical
// result out of range".
func checkSet(field, wanted, list string) error {
	if wanted == "" {
		return nil
	}
	data, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without NUMA
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", field, err)
	}
	online := strings.TrimSpace(string(data))
	have, err := spec.ParseSet(online)
	if err != nil {
		return fmt.Errorf("read %s: %w", list, err)
	}
	set, err := spec.ParseSet(wanted)
	if err != nil {
		return spec.Invalidf(field, "%v", err)
	}
	for _, part := range set {
		if !slices.ContainsFunc(have, func(r spec.Range) bool { return r.First <= part.First && part.Last <= r.Last }) {
			return spec.Invalidf(field, "%q: the node has %s", wanted, online)
		}
	}
	return nil
}
