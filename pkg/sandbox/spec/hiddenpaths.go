package spec

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultMaskedPaths are not readable: what they tell of the host helps an attacker. Runtimes skip those that a
// kernel does not have.
var defaultMaskedPaths = []string{
	"/proc/acpi",
	"/proc/asound",
	"/proc/interrupts",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/proc/sched_debug",
	"/sys/firmware",
	"/sys/devices/virtual/powercap",
	"/proc/scsi",
}

// defaultReadonlyPaths would change the host when written.
var defaultReadonlyPaths = []string{
	"/proc/bus",
	"/proc/fs",
	"/proc/irq",
	"/proc/sys",
	"/proc/sysrq-trigger",
}

// setHiddenPaths sets what of /proc and /sys the container may not see or change. A privileged one may all.
func setHiddenPaths(s *specs.Spec, _ Pod, c Container) error {
	if c.Privileged {
		return nil
	}
	for field, paths := range map[string][]string{
		"security_context.masked_paths": c.MaskedPaths, "security_context.readonly_paths": c.ReadonlyPaths,
	} {
		if i := slices.IndexFunc(paths, func(p string) bool { return !path.IsAbs(p) || strings.Contains(p, "\x00") }); i >= 0 {
			return Invalidf(field, "%q is not absolute, or has a NUL byte", paths[i])
		}
	}
	s.Linux.MaskedPaths = slices.Clone(c.MaskedPaths)
	if c.MaskedPaths == nil {
		s.Linux.MaskedPaths = slices.Concat(defaultMaskedPaths, c.HostMaskedPaths)
	}
	s.Linux.ReadonlyPaths = slices.Clone(c.ReadonlyPaths)
	if c.ReadonlyPaths == nil {
		s.Linux.ReadonlyPaths = slices.Clone(defaultReadonlyPaths)
	}
	return nil
}
