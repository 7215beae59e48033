package spec

import (
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	podInitBinary = "/pod-init"
	podInitUser   = 65535 // as the pause image's; nobody in a container can be expected to have it
)

// Init is what process 1 of a PID namespace that the pod's containers share is made of.
type Init struct {
	ID string
	// RootFS is an empty directory on the host, Binary crimonitor.
	RootFS, Binary string
	// AppArmorProfile and ProcessLabel are those of the pod's containers that ask for none of their own; "" is none.
	AppArmorProfile, ProcessLabel string
}

// PodInit makes the specification of process 1 of a PID namespace that the pod's containers share: "crimonitor pod-init",
// which reaps orphans. It sees nothing but its own binary: in the host's mount namespace, a container's root could reach
// the host by /proc/1/root. It is confined whatever the pod asks for: who takes it over, as a container with the right to trace
// processes may, shall not have gained anything.
func PodInit(p Pod, i Init) *specs.Spec {
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
	s := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args:            []string{podInitBinary, "pod-init"},
			Cwd:             "/",
			User:            user,
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{},
			ApparmorProfile: i.AppArmorProfile,
			SelinuxLabel:    i.ProcessLabel,
		},
		Root: &specs.Root{Path: i.RootFS, Readonly: true},
		Mounts: []specs.Mount{
			// Not read-only: the profile and the label are written to files in it.
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: podInitBinary, Type: "bind", Source: i.Binary, Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: CgroupsPath(p.CgroupPath, i.ID), Namespaces: namespaces, ReadonlyPaths: slices.Clone(defaultReadonlyPaths),
		},
	}
	s.Linux.Seccomp = seccomp.DefaultProfile(s)
	return s
}
