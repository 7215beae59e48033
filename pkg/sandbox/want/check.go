package want

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/signals"
	"criserver/pkg/sandbox/spec"
)

// ErrInvalid says that the configuration can never work.
var ErrInvalid = errors.New("invalid")

// maxCgroupParent is a length that no kubelet comes near to, and where the paths of files in the cgroups of containers still are as
// long as paths may be.
const maxCgroupParent = 1024

// Check refuses what can never work: an ErrInvalid that names the field of the CRI.
func (c Pod) Check() error {
	switch {
	case c.Name == "" || c.Namespace == "" || c.UID == "":
		return fmt.Errorf("metadata: %w: name, namespace and uid are needed", ErrInvalid)
	case len(c.Hostname) > 64: // the kernel's __NEW_UTS_LEN
		return fmt.Errorf("hostname: %w: %q is longer than 64 bytes", ErrInvalid, c.Hostname)
	case strings.ContainsFunc(c.Hostname, unicode.IsControl):
		return fmt.Errorf("hostname: %w: %q has control characters", ErrInvalid, c.Hostname)
	case len(c.CgroupParent) > maxCgroupParent || strings.ContainsFunc(c.CgroupParent, unicode.IsControl):
		return fmt.Errorf("linux.cgroup_parent: %w: %.40q… is longer than %d bytes, or has control characters", ErrInvalid, c.CgroupParent,
			maxCgroupParent)
	case c.LogDirectory != "" && !filepath.IsAbs(c.LogDirectory) || strings.Contains(c.LogDirectory, "\x00"):
		return fmt.Errorf("log_directory: %w: %q is not absolute, or has a NUL byte", ErrInvalid, c.LogDirectory)
	case c.CgroupParent != "" && (!filepath.IsAbs(c.CgroupParent) || filepath.Clean(c.CgroupParent) != c.CgroupParent ||
		c.CgroupParent == "/"):
		return fmt.Errorf("linux.cgroup_parent: %w: %q is not an absolute path in cgroupfs syntax below the root",
			ErrInvalid, c.CgroupParent)
	case c.Namespaces.PID == NamespaceTarget:
		return fmt.Errorf("namespace_options.pid: %w: TARGET is for containers", ErrInvalid)
	}
	if err := c.checkUsers(); err != nil {
		return err
	}
	for name := range c.Sysctls {
		if err := ns.CheckSysctl(name, c.Namespaces.Network == NamespacePod, c.Namespaces.IPC == NamespacePod); err != nil {
			return fmt.Errorf("linux.sysctls: %w: %w", ErrInvalid, err)
		}
	}
	return nil
}

// checkUsers refuses mappings that make no user namespace, and to share with the node what such a namespace has no rights over.
func (c Pod) checkUsers() error {
	n := c.Namespaces
	switch {
	case n.Users == nil:
		return nil
	case n.PID == NamespaceNode:
		return fmt.Errorf("namespace_options.pid: %w: NODE does not go with a user namespace", ErrInvalid)
	case n.IPC == NamespaceNode:
		return fmt.Errorf("namespace_options.ipc: %w: NODE does not go with a user namespace", ErrInvalid)
	}
	if err := n.Users.Check(); err != nil {
		return fmt.Errorf("namespace_options.userns_options: %w: %w", ErrInvalid, err)
	}
	return nil
}

// checkNamespaces refuses other namespaces than the pod's, where a container can have no others. POD is no contradiction in a pod
// that has the node's: it means those that all containers of the pod have (api.proto, NamespaceMode), and is what a caller sends who
// says nothing.
func (c Container) checkNamespaces(pod Namespaces) error {
	own := c.Namespaces
	switch {
	case own.Network == NamespaceNode && pod.Network != NamespaceNode:
		return fmt.Errorf("namespace_options.network: %w: NODE, and the pod has a network of its own", ErrInvalid)
	case own.IPC == NamespaceNode && pod.IPC != NamespaceNode:
		return fmt.Errorf("namespace_options.ipc: %w: NODE, and the pod has an IPC namespace of its own", ErrInvalid)
	case own.PID == NamespaceTarget && own.TargetID == "":
		return fmt.Errorf("namespace_options.target_id: %w: empty", ErrInvalid)
	case own.PID == NamespacePod && pod.PID != NamespacePod:
		return fmt.Errorf("namespace_options.pid: %w: the pod has no PID namespace to share", ErrInvalid)
	case own.Users != nil && !reflect.DeepEqual(own.Users, pod.Users):
		return fmt.Errorf("namespace_options.userns_options: %w: not those of the pod", ErrInvalid)
	case own.PID == NamespaceNode && pod.Users != nil:
		return fmt.Errorf("namespace_options.pid: %w: NODE does not go with the pod's user namespace", ErrInvalid)
	}
	return nil
}

// CheckCommand refuses a command that nobody can execute: an ErrInvalid that names the field of the CRI.
func CheckCommand(cmd []string) error {
	if len(cmd) == 0 {
		return fmt.Errorf("cmd: %w: empty", ErrInvalid)
	}
	if i := slices.IndexFunc(cmd, func(arg string) bool { return strings.Contains(arg, "\x00") }); i >= 0 {
		return fmt.Errorf("cmd: %w: %q has a NUL byte", ErrInvalid, cmd[i])
	}
	return nil
}

// Check refuses what can never work in the pod: an ErrInvalid that names the field of the CRI.
func (c Container) Check(p Pod) error {
	switch {
	case c.Name == "":
		return fmt.Errorf("metadata.name: %w: empty", ErrInvalid)
	case c.Privileged && !p.Privileged:
		return fmt.Errorf("security_context.privileged: %w: the pod is not privileged", ErrInvalid)
	case c.LogPath != "" && (!filepath.IsLocal(c.LogPath) || filepath.Clean(c.LogPath) == "." || strings.Contains(c.LogPath, "\x00")):
		return fmt.Errorf("log_path: %w: %q is no file below the pod's log directory", ErrInvalid, c.LogPath)
	}
	if err := c.checkNamespaces(p.Namespaces); err != nil {
		return err
	}
	if c.StopSignal != "" {
		if _, err := signals.Parse(c.StopSignal); err != nil {
			return fmt.Errorf("stop_signal: %w: %w", ErrInvalid, err)
		}
	}
	if c.Seccomp == spec.SeccompLocalhost && !filepath.IsAbs(c.SeccompProfile) {
		return fmt.Errorf("seccomp.localhost_ref: %w: %q is not absolute", ErrInvalid, c.SeccompProfile)
	}
	for i, d := range c.Devices {
		if strings.Contains(d.HostPath, "\x00") || strings.Contains(d.ContainerPath, "\x00") {
			return fmt.Errorf("devices[%d]: %w: host_path %q or container_path %q has a NUL byte", i, ErrInvalid, d.HostPath, d.ContainerPath)
		}
	}
	return c.checkMounts(p)
}

func (c Container) checkMounts(p Pod) error {
	for i, m := range c.Mounts {
		if !filepath.IsAbs(m.Source) || m.Destination == "" {
			return fmt.Errorf("mounts[%d]: %w: host_path must be absolute and container_path set, got %q and %q",
				i, ErrInvalid, m.Source, m.Destination)
		}
		if strings.Contains(m.Source, "\x00") || strings.Contains(m.Destination, "\x00") {
			return fmt.Errorf("mounts[%d]: %w: host_path %q or container_path %q has a NUL byte", i, ErrInvalid, m.Source, m.Destination)
		}
		if err := checkMountUsers(m.Users, p); err != nil {
			return fmt.Errorf("mounts[%d].%w", i, err)
		}
		if m.Propagation == spec.PropagationBidirectional && !c.Privileged {
			return fmt.Errorf("mounts[%d].propagation: %w: %s on %s: only a privileged container may mount on the host "+
				"(PROPAGATION_BIDIRECTIONAL)", i, ErrInvalid, m.Source, m.Destination)
		}
	}
	for _, v := range c.Volumes {
		if v.Destination == "" || filepath.IsAbs(v.SubPath) {
			return fmt.Errorf("mounts: %w: an image volume needs container_path, and image_sub_path relative, got %q and %q",
				ErrInvalid, v.Destination, v.SubPath)
		}
		if strings.Contains(v.Destination, "\x00") || strings.Contains(v.SubPath, "\x00") {
			return fmt.Errorf("mounts: %w: container_path %q or image_sub_path %q has a NUL byte", ErrInvalid, v.Destination, v.SubPath)
		}
		if err := checkMountUsers(v.Users, p); err != nil {
			return fmt.Errorf("mounts.%w, of the image on %s", err, v.Destination)
		}
	}
	return nil
}

// checkMountUsers refuses mappings of a mount that are not those of its pod; nil asks for none.
func checkMountUsers(users *idmap.Mappings, p Pod) error {
	if users == nil {
		return nil
	}
	if err := users.Check(); err != nil {
		return fmt.Errorf("mappings: %w: %w", ErrInvalid, err)
	}
	if !reflect.DeepEqual(users, p.Namespaces.Users) {
		return fmt.Errorf("uidMappings: %w: they are not those of the pod's user namespace", ErrInvalid)
	}
	return nil
}
