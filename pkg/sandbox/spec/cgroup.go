package spec

import (
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func setCgroup(s *specs.Spec, p Pod, c Container) error {
	s.Linux.CgroupsPath = path.Join(p.CgroupPath, c.ID)
	return nil
}
