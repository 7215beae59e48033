package checkpoint

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// match says ErrInvalid unless a new container's specification is the one that a container had, in what a restore cannot change: the
// process, who it is, what it may do, and what is in its mount namespace that is not mounted from the node.
func match(had, spec *specs.Spec) error {
	for _, row := range []struct {
		field     string
		had, want any
	}{
		{"command, args", had.Process.Args, spec.Process.Args},
		{"working_dir", had.Process.Cwd, spec.Process.Cwd},
		{"run_as_user, run_as_group, supplemental_groups", had.Process.User, spec.Process.User},
		{"envs", environment(had), environment(spec)},
		{"capabilities, privileged", capabilities(had), capabilities(spec)},
		{"no_new_privs", had.Process.NoNewPrivileges, spec.Process.NoNewPrivileges},
		{"apparmor", had.Process.ApparmorProfile, spec.Process.ApparmorProfile},
		{"selinux_options", had.Process.SelinuxLabel, spec.Process.SelinuxLabel},
		{"seccomp", linux(had).Seccomp, linux(spec).Seccomp},
		{"masked_paths", linux(had).MaskedPaths, linux(spec).MaskedPaths},
		{"readonly_paths", linux(had).ReadonlyPaths, linux(spec).ReadonlyPaths},
		{"devices", linux(had).Devices, linux(spec).Devices},
		{"readonly_rootfs", had.Root != nil && had.Root.Readonly, spec.Root != nil && spec.Root.Readonly},
	} {
		was, wanted := encode(row.had), encode(row.want)
		if was != wanted {
			return fmt.Errorf("%w: %s: the container had %.200s, not %.200s", ErrInvalid, row.field, was, wanted)
		}
	}
	return nil
}

func linux(s *specs.Spec) specs.Linux {
	if s.Linux == nil {
		return specs.Linux{}
	}
	return *s.Linux
}

// encode makes values comparable. What is empty and what is missing is the same.
func encode(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	if text := string(data); text != "null" && text != "[]" && text != "{}" {
		return text
	}
	return "nothing"
}

// environment is sorted, and without what is the pod's: its name, by which the runtime has set HOSTNAME.
func environment(s *specs.Spec) []string {
	values := map[string]string{}
	for _, v := range s.Process.Env {
		key, value, _ := strings.Cut(v, "=")
		values[key] = value
	}
	delete(values, "HOSTNAME")
	var out []string
	for _, key := range slices.Sorted(maps.Keys(values)) {
		out = append(out, key+"="+values[key])
	}
	return out
}

func capabilities(s *specs.Spec) [][]string {
	c := s.Process.Capabilities
	if c == nil {
		return nil
	}
	var out [][]string
	for _, set := range [][]string{c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient} {
		out = append(out, slices.Sorted(slices.Values(set)))
	}
	return out
}

// matchNamespaces says ErrInvalid where a container had other namespaces than it is to have: its processes go on in those that they
// were in, whatever the pod says.
func matchNamespaces(had, spec *specs.Spec) error {
	for _, t := range []specs.LinuxNamespaceType{
		specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace, specs.UserNamespace,
	} {
		was, wanted := namespace(had, t), namespace(spec, t)
		if was != wanted {
			return fmt.Errorf("%w: namespace_options: the %s namespace of the container was %s, not %s", ErrInvalid, t, was, wanted)
		}
		if t == specs.UserNamespace && was != hosts {
			return fmt.Errorf("%w: namespace_options.userns_options: a container in a user namespace cannot be restored", ErrInvalid)
		}
	}
	return nil
}

// hosts is the namespace of a container that has none for itself.
const hosts = "the node's"

func namespace(s *specs.Spec, t specs.LinuxNamespaceType) string {
	for _, ns := range linux(s).Namespaces {
		switch {
		case ns.Type != t:
		case t == specs.PIDNamespace && ns.Path != "":
			return "shared"
		default:
			return "its own or its pod's"
		}
	}
	return hosts
}

// matchMounts says ErrInvalid where a container had other mounts than it is to have. Those of wanted are compared in what they
// allow: they come back as they were.
func matchMounts(had, spec *specs.Spec, wanted []string) error {
	before, after := mountsOf(had), mountsOf(spec)
	for destination, m := range before {
		if _, ok := after[destination]; m.Type == "bind" && !ok {
			return fmt.Errorf("%w: mounts: the container had one at %s", ErrInvalid, destination)
		}
	}
	for _, destination := range wanted {
		was, ok := before[path.Clean(destination)]
		if !ok {
			return fmt.Errorf("%w: mounts: the container had none at %s", ErrInvalid, destination)
		}
		is := after[path.Clean(destination)]
		for _, option := range []string{"ro", "rro", "nosuid", "nodev", "noexec"} {
			a, b := slices.Contains(was.Options, option), slices.Contains(is.Options, option)
			if a != b {
				return fmt.Errorf("%w: mounts: the one at %s had the option %s: %t", ErrInvalid, destination, option, a)
			}
		}
		if len(was.UIDMappings) > 0 || len(is.UIDMappings) > 0 {
			return fmt.Errorf("%w: mounts: the one at %s is ID-mapped, which cannot be restored", ErrInvalid, destination)
		}
	}
	return nil
}

func mountsOf(s *specs.Spec) map[string]specs.Mount {
	out := map[string]specs.Mount{}
	for _, m := range s.Mounts {
		out[path.Clean(m.Destination)] = m
	}
	return out
}
