package spec

import (
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// setSeccomp sets the system call filter. RuntimeDefault is containerd's own profile, so that a workload that runs
// there runs here; it allows more to a container with more capabilities. A privileged container has no filter.
func setSeccomp(s *specs.Spec, _ Pod, c Container) error {
	switch {
	case c.Seccomp < SeccompUnconfined || c.Seccomp > SeccompLocalhost:
		return Invalidf("security_context.seccomp.profile_type", "%d is unknown", c.Seccomp)
	case c.Seccomp == SeccompLocalhost && c.SeccompProfile == nil:
		return Invalidf("security_context.seccomp.localhost_ref", "the profile is not known")
	case c.Privileged:
	case c.Seccomp == SeccompRuntimeDefault:
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
	case c.Seccomp == SeccompLocalhost:
		s.Linux.Seccomp = c.SeccompProfile
	}
	return nil
}
