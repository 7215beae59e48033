package spec

import "github.com/opencontainers/runtime-spec/specs-go"

// checkPrivileged holds the CRI's rule that only a privileged sandbox may hold privileged containers
// (LinuxSandboxSecurityContext.privileged in api.proto).
func checkPrivileged(_ *specs.Spec, p Pod, c Container) error {
	if c.Privileged && !p.Privileged {
		return Invalidf("security_context.privileged", "the pod sandbox is not privileged")
	}
	return nil
}
