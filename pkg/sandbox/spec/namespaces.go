package spec

import "github.com/opencontainers/runtime-spec/specs-go"

// setNamespaces sets the namespaces that are the container's own or the pod's. One that is not listed is the host's.
func setNamespaces(s *specs.Spec, p Pod, c Container) error {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.UserNamespace, Path: p.UserNS},
		{Type: specs.NetworkNamespace, Path: p.NetNS},
		{Type: specs.IPCNamespace, Path: p.IPCNS},
		{Type: specs.UTSNamespace, Path: p.UTSNS},
	} {
		if ns.Path != "" {
			list = append(list, ns)
		}
	}
	switch c.PID {
	case PIDContainer:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case PIDPath:
		if c.PIDNS == "" { // would be a new one
			return Invalidf("security_context.namespace_options.pid", "the namespace to join is not known")
		}
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: c.PIDNS})
	case PIDHost:
	default:
		return Invalidf("security_context.namespace_options.pid", "mode %d is unknown", c.PID)
	}
	if ownCgroupNamespace(c) {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Linux.Namespaces = list
	return nil
}

// ownCgroupNamespace tells whether the container sees its own cgroup as the root. On cgroup v1 runtimes never gave
// one and workloads read the full paths; a privileged container manages the host's (KEP-2254).
func ownCgroupNamespace(c Container) bool { return c.UnifiedCgroup && !c.Privileged }
