package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	podInitBinary = "/pod-init"
	podInitUser   = 65535 // as the pause image's; nobody in a container can be expected to have it
)

// PodInit makes the specification of process 1 of a PID namespace that the pod's containers share: "crimonitor pod-init",
// which reaps orphans. It sees nothing but its own binary: in the host's mount namespace, a container's root could reach
// the host by /proc/1/root.
func PodInit(p Pod, id, rootfs, binary string) *specs.Spec {
	namespaces := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.UserNamespace, Path: p.UserNS}, {Type: specs.NetworkNamespace, Path: p.NetNS}, {Type: specs.IPCNamespace, Path: p.IPCNS}, {Type: specs.UTSNamespace, Path: p.UTSNS},
	} {
		if ns.Path != "" {
			namespaces = append(namespaces, ns)
		}
	}
	user := specs.User{UID: podInitUser, GID: podInitUser}
	if p.Users != nil && (!p.Users.HasUID(podInitUser) || !p.Users.HasGID(podInitUser)) {
		user = specs.User{}
	}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args:            []string{podInitBinary, "pod-init"},
			Cwd:             "/",
			User:            user,
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{},
		},
		Root: &specs.Root{Path: rootfs, Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: podInitBinary, Type: "bind", Source: binary, Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{CgroupsPath: CgroupsPath(p.CgroupPath, id), Namespaces: namespaces},
	}
}
