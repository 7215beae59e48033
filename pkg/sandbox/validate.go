package sandbox

import (
	"fmt"
	"path/filepath"
	"strings"

	"criserver/pkg/sandbox/ns"
)

// validatePod refuses what can never work, naming the field of the CRI.
func validatePod(c PodConfig) error {
	switch {
	case c.Name == "" || c.Namespace == "" || c.UID == "":
		return fmt.Errorf("metadata: %w: name, namespace and uid are needed", ErrInvalid)
	case len(c.Hostname) > 64: // the kernel's __NEW_UTS_LEN
		return fmt.Errorf("hostname: %w: %q is longer than 64 bytes", ErrInvalid, c.Hostname)
	case c.LogDirectory != "" && !filepath.IsAbs(c.LogDirectory):
		return fmt.Errorf("log_directory: %w: %q is not absolute", ErrInvalid, c.LogDirectory)
	case c.CgroupParent != "" && (!filepath.IsAbs(c.CgroupParent) || filepath.Clean(c.CgroupParent) != c.CgroupParent ||
		c.CgroupParent == "/"):
		return fmt.Errorf("linux.cgroup_parent: %w: %q is not an absolute path in cgroupfs syntax below the root",
			ErrInvalid, c.CgroupParent)
	case strings.HasSuffix(c.CgroupParent, ".slice"):
		return fmt.Errorf("linux.cgroup_parent: %w: %q is a systemd slice, but the cgroup driver is cgroupfs: set the "+
			"kubelet's cgroupDriver to cgroupfs", ErrInvalid, c.CgroupParent)
	case c.Handler != "":
		return fmt.Errorf("runtime_handler: %w: %q is not configured", ErrInvalid, c.Handler)
	case c.Namespaces.PID == NamespaceTarget:
		return fmt.Errorf("namespace_options.pid: %w: TARGET is for containers", ErrInvalid)
	case c.Namespaces.Network == NamespaceNode && len(hostPorts(c)) > 0:
		// The kubelet sets host ports on host-network pods too; the pod has the port by itself.
		return nil
	}
	return validateSysctls(c)
}

func hostPorts(c PodConfig) []int32 {
	var ports []int32
	for _, p := range c.Ports {
		if p.HostPort != 0 {
			ports = append(ports, p.HostPort)
		}
	}
	return ports
}

// validateSysctls allows the sysctls that belong to a namespace of the pod; others would change the host.
func validateSysctls(c PodConfig) error {
	for name := range c.Sysctls {
		path, err := ns.SysctlPath(name)
		if err != nil {
			return fmt.Errorf("linux.sysctls: %w: %w", ErrInvalid, err)
		}
		key := strings.TrimPrefix(path, "/proc/sys/")
		var of string
		var shared bool
		switch {
		case strings.HasPrefix(key, "net/"):
			of, shared = "network", c.Namespaces.Network == NamespaceNode
		case strings.HasPrefix(key, "kernel/shm"), strings.HasPrefix(key, "kernel/msg"), key == "kernel/sem",
			strings.HasPrefix(key, "fs/mqueue/"):
			of, shared = "IPC", c.Namespaces.IPC == NamespaceNode
		default:
			return fmt.Errorf("linux.sysctls: %w: %s does not belong to a namespace", ErrInvalid, name)
		}
		if shared {
			return fmt.Errorf("linux.sysctls: %w: %s would change the host, whose %s namespace the pod shares", ErrInvalid, name, of)
		}
	}
	return nil
}

func validateContainer(p PodStatus, c ContainerConfig) error {
	switch {
	case c.Name == "":
		return fmt.Errorf("metadata.name: %w: empty", ErrInvalid)
	case !p.ready():
		return fmt.Errorf("pod %s is %s: %w", p.ID, p.Phase, ErrState)
	case c.Privileged && !p.Config.Privileged:
		return fmt.Errorf("security_context.privileged: %w: the pod is not privileged", ErrInvalid)
	case c.LogPath != "" && !filepath.IsLocal(c.LogPath):
		return fmt.Errorf("log_path: %w: %q leaves the pod's log directory", ErrInvalid, c.LogPath)
	case c.Namespaces.PID == NamespaceTarget && c.Namespaces.TargetID == "":
		return fmt.Errorf("namespace_options.target_id: %w: empty", ErrInvalid)
	}
	if c.Namespaces.PID == NamespacePod && p.Config.Namespaces.PID != NamespacePod {
		return fmt.Errorf("namespace_options.pid: %w: the pod has no PID namespace to share", ErrInvalid)
	}
	if c.StopSignal != "" {
		if _, err := parseSignal(c.StopSignal); err != nil {
			return fmt.Errorf("stop_signal: %w", err)
		}
	}
	for i, m := range c.Mounts {
		if !filepath.IsAbs(m.Source) || m.Destination == "" {
			return fmt.Errorf("mounts[%d]: %w: host_path must be absolute and container_path set, got %q and %q",
				i, ErrInvalid, m.Source, m.Destination)
		}
	}
	return nil
}
