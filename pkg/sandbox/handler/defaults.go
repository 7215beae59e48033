package handler

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/device"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/qosclass"
	"criserver/pkg/sandbox/spec"
)

// Defaults are what an operator gives the pods and containers of a handler. What they say for themselves counts instead.
type Defaults struct {
	// Env are "NAME=value".
	Env []string
	// Ulimits, by their names in the OCI specification.
	Ulimits []specs.POSIXRlimit
	// Sysctls of pods; a pod in the host's namespace does not get those of that.
	Sysctls map[string]string
	Devices []Device
	// Timezone is a file that containers see as /etc/localtime; "" for none.
	Timezone string
	// PidsLimit is how many processes and threads a container may have; 0 is no limit.
	PidsLimit int64
	Classes   qosclass.Classes
	Hooks     specs.Hooks
	// HooksDirs have hooks in the form of oci-hooks(5); what is in them is read anew for each container.
	HooksDirs []string
}

// Device is a device node of the host.
type Device struct {
	Path, Permissions string
}

// localtime is where programs look for their time zone (localtime(5)).
const localtime = "/etc/localtime"

// Prepare puts the defaults into what a specification is made of, where the container has not its own, and takes annotations out that
// are the operator's to give. A memory limit with which no container starts is a spec.ErrInvalid.
func (u Usable) Prepare(c *spec.Container) error {
	if limit := c.Resources.MemoryLimit; limit > 0 && limit < u.LeastMemory {
		return spec.Invalidf("resources.memory_limit_in_bytes", "%d: runtime handler %q starts no container with less than %d", limit, u.Name,
			u.LeastMemory)
	}
	c.Annotations = u.passedOn(c.Annotations)
	for _, d := range u.Devices {
		if slices.ContainsFunc(c.Devices, func(own spec.Device) bool { return own.Path == d.Path }) {
			continue
		}
		node, err := device.Node(d.Path, d.Path, d.Permissions)
		if err != nil {
			return fmt.Errorf("device %s of runtime handler %s: %w", d.Path, u.Name, err)
		}
		c.Devices = append(c.Devices, node)
	}
	if u.Timezone != "" && !slices.ContainsFunc(c.Mounts, func(m spec.Mount) bool { return covers(m.Destination) }) {
		source, err := filepath.EvalSymlinks(u.Timezone)
		if err != nil {
			return fmt.Errorf("time zone of runtime handler %s: %w", u.Name, err)
		}
		c.Mounts = append(c.Mounts, spec.Mount{Source: source, Destination: localtime, ReadOnly: true})
	}
	return nil
}

// covers tells whether a mount is of the time zone, or above it.
func covers(destination string) bool {
	d := filepath.Clean(destination)
	return d == localtime || d == filepath.Dir(localtime)
}

// addDefaults puts the rest into a specification.
func (u Usable) addDefaults(s *specs.Spec) {
	for _, e := range u.Env {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(s.Process.Env, func(own string) bool { return strings.HasPrefix(own, name+"=") }) {
			s.Process.Env = append(s.Process.Env, e)
		}
	}
	for _, l := range u.Ulimits {
		if !slices.ContainsFunc(s.Process.Rlimits, func(own specs.POSIXRlimit) bool { return own.Type == l.Type }) {
			s.Process.Rlimits = append(s.Process.Rlimits, l)
		}
	}
	if u.PidsLimit > 0 && s.Linux.Resources != nil && s.Linux.Resources.Pids == nil {
		limit := u.PidsLimit
		s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	}
}

// PodSysctls adds the defaults to the sysctls of a pod, which has the namespaces that ownNet and ownIPC tell.
func (u Usable) PodSysctls(own map[string]string, ownNet, ownIPC bool) map[string]string {
	all := map[string]string{}
	for name, value := range u.Sysctls {
		if ns.CheckSysctl(name, ownNet, ownIPC) == nil {
			all[name] = value
		}
	}
	for name, value := range own {
		maps.DeleteFunc(all, func(other, _ string) bool { return sameSysctl(name, other) })
		all[name] = value
	}
	return all
}

// sameSysctl compares names, which have two forms.
func sameSysctl(a, b string) bool {
	pathA, errA := ns.SysctlPath(a)
	pathB, errB := ns.SysctlPath(b)
	return errA == nil && errB == nil && pathA == pathB
}
