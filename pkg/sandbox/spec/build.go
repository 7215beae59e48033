// Package spec makes a container's OCI runtime specification from values. It is pure: whatever the host, the image's
// files or the kernel have to say is in its input.
//
// A specification is the work of the rules below, one concern each, one after another. A rule that reads what another
// one has written stands below it.
package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// rule writes one concern of a container into the specification.
type rule struct {
	name  string
	apply func(s *specs.Spec, p Pod, c Container) error
}

// rules is the order of the rules.
var rules = []rule{
	{"privileged", checkPrivileged},
	{"rootfs", setRootFS},
	{"process", setProcess},
	{"env", setEnv},
	{"user", setUser},
	{"default mounts", setDefaultMounts},
	{"mounts", addMounts}, // replaces default mounts
	{"namespaces", setNamespaces},
	{"cgroup", setCgroup},
	{"resources", setResources},
	{"devices", setDevices}, // into the resources
	{"capabilities", setCapabilities},
	{"no new privileges", setNoNewPrivs},
	{"hidden paths", setHiddenPaths},
	{"seccomp", setSeccomp}, // allows system calls by the capabilities
	{"apparmor", setAppArmor},
	{"selinux", setSELinux},
	{"oom score", setOOMScore},
	{"annotations", setAnnotations},
}

// Build makes the specification of the container c in the pod p. Errors are FieldErrors, in the terms of the CRI.
func Build(p Pod, c Container) (*specs.Spec, error) {
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{},
		Process: &specs.Process{},
		Linux:   &specs.Linux{},
	}
	for _, r := range rules {
		if err := r.apply(s, p, c); err != nil {
			return nil, err
		}
	}
	return s, nil
}
