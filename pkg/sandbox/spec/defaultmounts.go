package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// setDefaultMounts sets the file systems of the OCI specification (config-linux.md, "Default Filesystems") and the
// cgroups. /dev/shm is not among them: it is the pod's.
func setDefaultMounts(s *specs.Spec, p Pod, c Container) error {
	mode := "ro"
	if c.Privileged {
		mode = "rw"
	}
	cgroup := []string{"nosuid", "noexec", "nodev", "relatime", mode}
	if c.UnifiedCgroup && !ownCgroupNamespace(c) {
		cgroup = append(cgroup, c.CgroupMountOptions...)
	}
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sysMount(p, mode),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroup},
	}
	return nil
}

// sysMount is a sysfs of its own, which shows the devices of the container's network namespace. Only who has rights over that may make
// one: in a user namespace on the host's network it is the host's, read-only as far down as it goes.
func sysMount(p Pod, mode string) specs.Mount {
	if p.UserNS != "" && p.NetNS == "" {
		return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "ro", "rro"}}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}}
}
