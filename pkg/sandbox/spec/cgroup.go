package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ScopePrefix begins the names of the systemd scopes of containers.
const ScopePrefix = "criserver"

// CgroupsPath tells a runtime which cgroup to make for a container in that of its pod: a directory or, in a systemd slice, a scope, in
// runc's form SLICE:PREFIX:NAME.
func CgroupsPath(pod, id string) string {
	if strings.HasSuffix(pod, ".slice") {
		return path.Base(pod) + ":" + ScopePrefix + ":" + id
	}
	return path.Join(pod, id)
}

func setCgroup(s *specs.Spec, p Pod, c Container) error {
	s.Linux.CgroupsPath = CgroupsPath(p.CgroupPath, c.ID)
	return nil
}
