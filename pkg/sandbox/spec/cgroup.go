package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ScopePrefix begins the names of the systemd scopes of containers.
const ScopePrefix = "criserver"

// IsSlice tells whether a pod's cgroup is a systemd slice, in which systemd makes those of its containers.
func IsSlice(pod string) bool { return strings.HasSuffix(pod, ".slice") }

// CgroupsPath tells a runtime which cgroup to make for a container in that of its pod: a directory or, in a systemd slice, a scope, in
// runc's form SLICE:PREFIX:NAME.
func CgroupsPath(pod, id string) string {
	if IsSlice(pod) {
		return path.Base(pod) + ":" + ScopePrefix + ":" + id
	}
	return path.Join(pod, id)
}

func setCgroup(s *specs.Spec, p Pod, c Container) error {
	s.Linux.CgroupsPath = CgroupsPath(p.CgroupPath, c.ID)
	return nil
}
