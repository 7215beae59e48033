// Package adjust changes the OCI specification of a container as NRI plugins want it. What an adjustment means is the NRI
// module's to say (its pkg/runtime-tools/generate); here is what depends on this runtime and on the node.
package adjust

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/nri/translate"
	"criserver/pkg/sandbox/device"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/qosclass"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/spec"
)

// Spec adjusts s, the specification of a container with limits. left is the container as the last plugin has left it. It returns the
// limits that the container then has: what later updates start from. cdiDirs hold the files that describe CDI devices. After an error s
// is of no use.
func Spec(ctx context.Context, s *specs.Spec, a *api.ContainerAdjustment, left *api.Container, limits spec.Resources, cdiDirs []string) (spec.Resources, error) {
	if a == nil {
		return limits, nil
	}
	if p := a.GetLinux().GetCgroupsPath(); p != "" && (!path.IsAbs(p) || path.Clean(p) != p || p == "/") {
		return limits, fmt.Errorf("cgroups_path: %q is not the absolute path of a cgroup", p)
	}
	for _, l := range a.GetRlimits() {
		if _, ok := runtime.Rlimits[l.GetType()]; !ok {
			return limits, fmt.Errorf("rlimits: %q is unknown", l.GetType())
		}
	}
	addRemovals(a, s, left)
	limits = wanted(limits, a)
	t := &target{s}
	t.resources() // there must be some to be checked
	g := generate.SpecGenerator(t,
		generate.WithResourceChecker(func(r *specs.LinuxResources) error { return setLimits(r, a.GetLinux().GetResources(), limits) }),
		generate.WithBlockIOResolver(qosclass.BlockIO),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) { return &specs.LinuxIntelRdt{ClosID: class}, nil }),
		generate.WithCDIDeviceInjector(func(s *specs.Spec, names []string) error { return device.InjectCDI(ctx, cdiDirs, s, names) }),
	)
	if err := g.Adjust(a); err != nil {
		return limits, err
	}
	if errno := a.GetLinux().GetSeccompPolicy().GetDefaultErrno(); errno != nil {
		s.Linux.Seccomp.DefaultErrnoRet = new(uint(errno.GetValue()))
	}
	s.Process.Rlimits = handler.PossibleUlimits("NRI", lastOfEach(s.Process.Rlimits))
	if s.Process.OOMScoreAdj != nil {
		score, err := host.OOMScore(*s.Process.OOMScoreAdj)
		if err != nil {
			return limits, err
		}
		s.Process.OOMScoreAdj = &score
	}
	return limits, nil
}

// addRemovals adds to an adjustment the environment variables and devices that plugins have taken away. The adaptation package
// (v0.12.5) has them taken out of the container that the next plugin sees, and leaves them out of the adjustment.
func addRemovals(a *api.ContainerAdjustment, s *specs.Spec, left *api.Container) {
	name := func(e string) string { n, _, _ := strings.Cut(e, "="); return n }
	for _, e := range s.Process.Env {
		if !slices.ContainsFunc(left.GetEnv(), func(l string) bool { return name(l) == name(e) }) {
			a.RemoveEnv(name(e))
		}
	}
	for _, d := range s.Linux.Devices {
		if !slices.ContainsFunc(left.GetLinux().GetDevices(), func(l *api.LinuxDevice) bool { return l.GetPath() == d.Path }) {
			a.RemoveDevice(d.Path)
		}
	}
}

// wanted are the limits after an adjustment.
func wanted(limits spec.Resources, a *api.ContainerAdjustment) spec.Resources {
	limits = limits.With(translate.ToResources(a.GetLinux().GetResources()))
	if score := a.GetLinux().GetOomScoreAdj(); score != nil {
		limits.OOMScoreAdj = score.GetValue()
	}
	return limits
}

// setLimits writes limits as those of a request are written, and beside them what of memory only plugins can say.
func setLimits(r *specs.LinuxResources, change *api.LinuxResources, limits spec.Resources) error {
	want, err := host.Limits(limits)
	if err != nil {
		return err
	}
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	r.CPU.Shares, r.CPU.Quota, r.CPU.Period, r.CPU.Cpus, r.CPU.Mems =
		want.CPU.Shares, want.CPU.Quota, want.CPU.Period, want.CPU.Cpus, want.CPU.Mems
	r.Memory.Limit, r.Memory.Swap = want.Memory.Limit, want.Memory.Swap
	r.HugepageLimits, r.Unified = want.HugepageLimits, want.Unified
	m := change.GetMemory()
	keep(&r.Memory.Reservation, m.GetReservation().Get())
	keep(&r.Memory.Kernel, m.GetKernel().Get()) //nolint:staticcheck // deprecated; NRI has it
	keep(&r.Memory.KernelTCP, m.GetKernelTcp().Get())
	keep(&r.Memory.Swappiness, m.GetSwappiness().Get())
	keep(&r.Memory.DisableOOMKiller, m.GetDisableOomKiller().Get())
	keep(&r.Memory.UseHierarchy, m.GetUseHierarchy().Get())
	return nil
}

// keep sets what is said.
func keep[T any](field **T, value *T) {
	if value != nil {
		*field = value
	}
}

// lastOfEach keeps of several limits of a kind the last one: that of the plugin. OCI runtimes refuse duplicates.
func lastOfEach(all []specs.POSIXRlimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	place := map[string]int{}
	for _, l := range all {
		if i, ok := place[l.Type]; ok {
			out[i] = l
			continue
		}
		place[l.Type] = len(out)
		out = append(out, l)
	}
	return out
}
