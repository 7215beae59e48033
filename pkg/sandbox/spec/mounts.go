package spec

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/idmap"
)

// addMounts adds the pod's files and the container's mounts, upper directories first so that none hides another. A
// mount replaces what the rules above or the pod have for the same destination; one on /dev replaces all default
// mounts below it.
func addMounts(s *specs.Spec, p Pod, c Container) error {
	for _, m := range c.Mounts {
		if err := checkMount(m); err != nil {
			return err
		}
	}
	mounts := slices.Clone(c.Mounts)
	for _, m := range podMounts(p, c) {
		if !mountedOn(c.Mounts, m.Destination) {
			mounts = append(mounts, m)
		}
	}
	slices.SortStableFunc(mounts, func(a, b Mount) int { return depth(a.Destination) - depth(b.Destination) })

	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool {
		return mountedOn(mounts, m.Destination) ||
			strings.HasPrefix(m.Destination, "/dev/") && mountedOn(mounts, "/dev")
	})
	for _, m := range mounts {
		s.Mounts = append(s.Mounts, bindMount(m))
		s.Linux.RootfsPropagation = widerPropagation(s.Linux.RootfsPropagation, m.Propagation)
	}
	return nil
}

// mountOptions are those that take rights away: others would undo readonly and the like, or be the host's to decide.
var mountOptions = []string{"nodev", "noexec", "nosuid"}

func checkMount(m Mount) error {
	switch {
	case !path.IsAbs(m.Source):
		return Invalidf("mounts.host_path", "%q, for %s, is not absolute", m.Source, m.Destination)
	case !path.IsAbs(m.Destination):
		return Invalidf("mounts.container_path", "%q is not absolute", m.Destination)
	case path.Clean(m.Destination) == "/":
		return Invalidf("mounts.container_path", "the root directory cannot be mounted on")
	case m.Propagation < PropagationPrivate || m.Propagation > PropagationBidirectional:
		return Invalidf("mounts.propagation", "%d, of %s, is unknown", m.Propagation, m.Destination)
	case m.RecursiveReadOnly && !m.ReadOnly:
		return Invalidf("mounts.recursive_read_only", "%s must be readonly too", m.Destination)
	case m.RecursiveReadOnly && m.Propagation != PropagationPrivate:
		// What is mounted on the host later would be writable.
		return Invalidf("mounts.recursive_read_only", "%s must have the propagation private", m.Destination)
	}
	for _, o := range m.Options {
		if !slices.Contains(mountOptions, o) {
			return Invalidf("mounts.mount_options", "%q, of %s, is none of %s", o, m.Destination, strings.Join(mountOptions, ", "))
		}
	}
	return nil
}

// podMounts are the files that the containers of a pod share.
func podMounts(p Pod, c Container) []Mount {
	all := []Mount{
		{Source: p.HostnameFile, Destination: "/etc/hostname", ReadOnly: c.ReadOnlyRootFS},
		{Source: p.HostsFile, Destination: "/etc/hosts", ReadOnly: c.ReadOnlyRootFS},
		{Source: p.ResolvConf, Destination: "/etc/resolv.conf", ReadOnly: c.ReadOnlyRootFS},
		{Source: p.ShmPath, Destination: "/dev/shm"},
	}
	return slices.DeleteFunc(all, func(m Mount) bool { return m.Source == "" })
}

func bindMount(m Mount) specs.Mount {
	propagation := map[Propagation]string{
		PropagationPrivate: "rprivate", PropagationHostToContainer: "rslave", PropagationBidirectional: "rshared",
	}
	options := []string{"rbind", propagation[m.Propagation]}
	switch {
	case m.RecursiveReadOnly:
		options = append(options, "ro", "rro")
	case m.ReadOnly:
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	out := specs.Mount{
		Destination: m.Destination, Type: "bind", Source: m.Source, Options: append(options, m.Options...),
	}
	if m.Users != nil {
		out.UIDMappings, out.GIDMappings = linuxMappings(m.Users.UIDs), linuxMappings(m.Users.GIDs)
	}
	return out
}

func linuxMappings(ranges []idmap.Range) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, len(ranges))
	for i, r := range ranges {
		out[i] = specs.LinuxIDMapping{ContainerID: r.Container, HostID: r.Host, Size: r.Size}
	}
	return out
}

// widerPropagation is the propagation of the root that a mount with propagation p needs: a mount in a private tree
// neither gets events nor sends them.
func widerPropagation(current string, p Propagation) string {
	switch {
	case p == PropagationBidirectional:
		return "rshared"
	case p == PropagationHostToContainer && current == "":
		return "rslave"
	}
	return current
}

func mountedOn(mounts []Mount, destination string) bool {
	return slices.ContainsFunc(mounts, func(m Mount) bool {
		return path.Clean(m.Destination) == path.Clean(destination)
	})
}

func depth(destination string) int { return strings.Count(path.Clean(destination), "/") }
