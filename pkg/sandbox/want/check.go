package want

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"unicode"

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
	case c.LogDirectory != "" && !filepath.IsAbs(c.LogDirectory):
		return fmt.Errorf("log_directory: %w: %q is not absolute", ErrInvalid, c.LogDirectory)
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

// Check refuses what can never work in the pod: an ErrInvalid that names the field of the CRI.
func (c Container) Check(p Pod) error {
	switch {
	case c.Name == "":
		return fmt.Errorf("metadata.name: %w: empty", ErrInvalid)
	case c.Privileged && !p.Privileged:
		return fmt.Errorf("security_context.privileged: %w: the pod is not privileged", ErrInvalid)
	case c.LogPath != "" && !filepath.IsLocal(c.LogPath):
		return fmt.Errorf("log_path: %w: %q leaves the pod's log directory", ErrInvalid, c.LogPath)
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
	for i, m := range c.Mounts {
		if !filepath.IsAbs(m.Source) || m.Destination == "" {
			return fmt.Errorf("mounts[%d]: %w: host_path must be absolute and container_path set, got %q and %q",
				i, ErrInvalid, m.Source, m.Destination)
		}
		if m.Users != nil {
			if err := m.Users.Check(); err != nil {
				return fmt.Errorf("mounts[%d].mappings: %w: %w", i, ErrInvalid, err)
			}
			if !reflect.DeepEqual(m.Users, p.Namespaces.Users) {
				return fmt.Errorf("mounts[%d].uidMappings: %w: they are not those of the pod's user namespace", i, ErrInvalid)
			}
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
	}
	return nil
}
