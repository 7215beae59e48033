package spec

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are what a container has that asks for nothing: Docker's set of old, which images rely on.
var defaultCapabilities = []string{
	"CAP_CHOWN",
	"CAP_DAC_OVERRIDE",
	"CAP_FSETID",
	"CAP_FOWNER",
	"CAP_MKNOD",
	"CAP_NET_RAW",
	"CAP_SETGID",
	"CAP_SETUID",
	"CAP_SETFCAP",
	"CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE",
	"CAP_SYS_CHROOT",
	"CAP_KILL",
	"CAP_AUDIT_WRITE",
}

// setCapabilities sets the bounding, permitted and effective sets. Inheritable ones would let an unprivileged user in
// the container gain them through file capabilities (CVE-2022-24769); only what is wanted as ambient is, as it must be
// (capabilities(7)), and the workload of any user has it then.
func setCapabilities(s *specs.Spec, _ Pod, c Container) error {
	add, err := parseCapabilities("capabilities.add_capabilities", c.Capabilities.Add)
	if err != nil {
		return err
	}
	drop, err := parseCapabilities("capabilities.drop_capabilities", c.Capabilities.Drop)
	if err != nil {
		return err
	}
	ambient, err := parseCapabilities("capabilities.add_ambient_capabilities", c.Capabilities.Ambient)
	if err != nil {
		return err
	}
	all := knownCapabilities()
	// "ALL" on either side is the set that the single names then change, whatever their order.
	set := defaultCapabilities
	if add.all || ambient.all {
		set = all
	}
	if drop.all {
		set = nil
	}
	set = slices.Concat(set, add.names, ambient.names)
	keep := func(name string) bool { return slices.Contains(set, name) && !slices.Contains(drop.names, name) }
	if c.Privileged {
		keep = func(string) bool { return true }
	}
	var names, kept []string
	for _, name := range all { // in the kernel's order, each once
		if keep(name) && (c.HeldCapabilities == nil || slices.Contains(c.HeldCapabilities, name)) {
			names = append(names, name)
			if ambient.all || slices.Contains(ambient.names, name) {
				kept = append(kept, name)
			}
		}
	}
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: names, Effective: slices.Clone(names), Permitted: slices.Clone(names),
		Inheritable: kept, Ambient: slices.Clone(kept),
	}
	return nil
}

type capabilityList struct {
	all   bool
	names []string // "CAP_…"
}

func parseCapabilities(field string, list []string) (capabilityList, error) {
	var out capabilityList
	known := knownCapabilities()
	for _, given := range list {
		name := strings.ToUpper(given)
		if name == "ALL" {
			out.all = true
			continue
		}
		name = "CAP_" + strings.TrimPrefix(name, "CAP_")
		if !slices.Contains(known, name) {
			return out, Invalidf(field, "unknown capability %q", given)
		}
		out.names = append(out.names, name)
	}
	return out, nil
}

// knownCapabilities are the names of capabilities(7), in the kernel's order.
func knownCapabilities() []string {
	var names []string
	for _, c := range capability.ListKnown() {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names
}
