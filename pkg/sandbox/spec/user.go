package spec

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// setUser sets who the process runs as. The primary group is one of the supplemental ones, as in every login session:
// a process that drops its primary group keeps what it could read.
func setUser(s *specs.Spec, _ Pod, c Container) error {
	groups := append([]uint32{c.User.GID}, c.User.AdditionalGIDs...)
	slices.Sort(groups)
	s.Process.User = specs.User{
		UID:            c.User.UID,
		GID:            c.User.GID,
		AdditionalGids: slices.Compact(groups),
	}
	return nil
}
