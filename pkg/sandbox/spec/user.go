package spec

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// setUser sets who the process runs as. The primary group is one of the supplemental ones, as in every login session:
// a process that drops its primary group keeps what it could read.
func setUser(s *specs.Spec, p Pod, c Container) error {
	groups := append([]uint32{c.User.GID}, c.User.AdditionalGIDs...)
	if m := p.Users; m != nil {
		if !m.HasUID(c.User.UID) {
			return Invalidf("security_context.run_as_user", "the user namespace has no user %d", c.User.UID)
		}
		if i := slices.IndexFunc(groups, func(g uint32) bool { return !m.HasGID(g) }); i >= 0 {
			return Invalidf("security_context", "the user namespace has no group %d, of user %d", groups[i], c.User.UID)
		}
	}
	slices.Sort(groups)
	s.Process.User = specs.User{
		UID:            c.User.UID,
		GID:            c.User.GID,
		AdditionalGids: slices.Compact(groups),
	}
	return nil
}
