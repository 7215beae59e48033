// Package oom tells whether and why the kernel has killed processes of a cgroup for want of memory. It imports little:
// crimonitor has it.
package oom

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// Cause tells in words what was short of memory when the kernel killed a process of the container whose cgroup is at the
// absolute path: the limit of the container, that of its pod, of a cgroup above, or the node. "" if none was killed.
//
// Counters do not tell which kill was whose. A container that has hit its own limit, be it long ago, is named before its pod.
// On cgroup v1 a limit that was come close to counts as hit.
func Cause(cgroup string) string {
	v := legacy
	if hierarchy.Unified() {
		v = unified
	}
	return cause(cgroup, hierarchy.Dir("memory", "/"), v)
}

// version is where a cgroup version counts.
type version struct {
	// kills is the file with the field oom_kill.
	kills  string
	limits []limit
}

// limit is a limit by its file, and how often it was hit: a field of a file. Without one, peak is the file with the most that was
// ever in use: memory.failcnt of cgroup v1 stays 0 on kernels of our day.
type limit struct{ name, file, hits, field, peak string }

// near is how far below its limit a cgroup may be when it is refused more: the kernel charges 64 pages at once
// (MEMCG_CHARGE_BATCH).
const near = 64 * 4096

func (l limit) hit(dir string) bool {
	if l.peak == "" {
		return number(filepath.Join(dir, l.hits), l.field) > 0
	}
	limit := number(filepath.Join(dir, l.file), "")
	return limit > 0 && number(filepath.Join(dir, l.peak), "") >= limit-near
}

var (
	// cgroup-v2.rst: memory.events.local counts what happened at this level, memory.events what happened below too.
	unified = version{"memory.events", []limit{{name: "memory limit", file: "memory.max", hits: "memory.events.local", field: "oom"}}}
	// cgroup-v1/memory.rst
	legacy = version{"memory.oom_control", []limit{
		{name: "memory limit", file: "memory.limit_in_bytes", peak: "memory.max_usage_in_bytes"},
		{name: "limit of memory and swap", file: "memory.memsw.limit_in_bytes", peak: "memory.memsw.max_usage_in_bytes"},
	}}
)

func cause(cgroup, root string, v version) string {
	if number(filepath.Join(root, cgroup, v.kills), "oom_kill") <= 0 {
		return ""
	}
	for depth, at := 0, cgroup; at != "/" && at != "."; depth, at = depth+1, path.Dir(at) {
		for _, l := range v.limits {
			dir := filepath.Join(root, at)
			if l.hit(dir) {
				return fmt.Sprintf("the %s of %s, %d bytes, was reached", l.name, owner(depth, at), number(filepath.Join(dir, l.file), ""))
			}
		}
	}
	return "the node had no memory left"
}

func owner(depth int, cgroup string) string {
	switch depth {
	case 0:
		return "the container"
	case 1:
		return "the pod"
	}
	return "cgroup " + cgroup
}

// number is a field of a file of "name value" lines, or with no field the one number in it; -1 if there is none.
func number(file, field string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if field == "" {
			name, value = "", name
		}
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && name == field {
			return n
		}
	}
	return -1
}
