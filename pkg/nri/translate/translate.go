// Package translate turns what is known of pods and containers into the words of NRI, and limits back. It is pure.
package translate

import (
	"maps"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/spec"
)

// Pod is a pod, with those of its namespaces that are there.
func Pod(p ledger.PodStatus, namespaces []specs.LinuxNamespace) *api.PodSandbox {
	c := p.Config
	out := &api.PodSandbox{
		Id: p.ID, Name: c.Name, Uid: c.UID, Namespace: c.Namespace, RuntimeHandler: c.Handler,
		Labels: maps.Clone(c.Labels), Annotations: maps.Clone(c.Annotations),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: FromResources(c.Overhead), PodResources: FromResources(c.Resources),
			CgroupParent: c.CgroupParent, CgroupsPath: p.CgroupPath, Namespaces: api.FromOCILinuxNamespaces(namespaces),
		},
	}
	for _, ip := range p.IPs {
		out.Ips = append(out.Ips, ip.String())
	}
	return out
}

// Container is a container with its specification, nil for one whose specification is lost.
func Container(c ledger.ContainerStatus, s *specs.Spec) *api.Container {
	now := FromResources(c.Config.Resources)
	out := &api.Container{
		Id: c.ID, PodSandboxId: c.PodID, Name: c.Config.Name, State: state(c.Phase),
		Labels: maps.Clone(c.Config.Labels), Annotations: map[string]string{},
		Pid: uint32(c.PID), CreatedAt: nanoseconds(c.CreatedAt), StartedAt: nanoseconds(c.StartedAt), FinishedAt: nanoseconds(c.FinishedAt),
		ExitCode: int32(c.ExitCode), StatusReason: c.Reason, StatusMessage: c.Message,
		User:  &api.User{Uid: c.User.UID, Gid: c.User.GID, AdditionalGids: slices.Clone(c.User.AdditionalGIDs)},
		Image: &api.Image{Name: c.Config.ImageName, Digest: c.ImageRef, ConfigDigest: c.ImageID},
		Linux: &api.LinuxContainer{
			Resources: now, CgroupsPath: c.CgroupPath, SeccompProfile: seccompProfile(c),
		},
	}
	for _, name := range c.Config.CDIDevices {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: name})
	}
	if s != nil {
		addSpec(out, s)
		// The limits may have changed since the specification was made.
		out.Linux.Resources.Cpu, out.Linux.Resources.Memory = now.GetCpu(), withLimits(out.Linux.Resources.GetMemory(), now.GetMemory())
		out.Linux.Resources.HugepageLimits, out.Linux.Resources.Unified = now.GetHugepageLimits(), now.GetUnified()
	}
	maps.Copy(out.Annotations, c.Config.Annotations)
	return out
}

// addSpec adds what the specification says.
func addSpec(out *api.Container, s *specs.Spec) {
	maps.Copy(out.Annotations, s.Annotations)
	out.Mounts, out.Hooks = api.FromOCIMounts(s.Mounts), api.FromOCIHooks(s.Hooks)
	if p := s.Process; p != nil {
		out.Args, out.Env = slices.Clone(p.Args), slices.Clone(p.Env)
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: slices.Clone(p.User.AdditionalGids)}
		out.Linux.OomScoreAdj, out.Linux.IoPriority = api.Int(p.OOMScoreAdj), api.FromOCILinuxIOPriority(p.IOPriority)
		if p.Scheduler != nil {
			out.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		}
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	if l := s.Linux; l != nil {
		out.Linux.Namespaces, out.Linux.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
		out.Linux.NetDevices, out.Linux.Sysctl = api.FromOCILinuxNetDevices(l.NetDevices), maps.Clone(l.Sysctl)
		out.Linux.CgroupsPath = l.CgroupsPath
		if l.Seccomp != nil {
			out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
		}
		if l.Resources != nil {
			out.Linux.Resources = api.FromOCILinuxResources(l.Resources, s.Annotations)
		}
		if r := l.IntelRdt; r != nil {
			out.Linux.Rdt = &api.LinuxRdt{
				ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring),
			}
		}
	}
}

// withLimits puts the limits of memory and swap into what else is said of memory.
func withLimits(m, limits *api.LinuxMemory) *api.LinuxMemory {
	if m == nil {
		return limits
	}
	m.Limit = limits.GetLimit()
	if limits.GetSwap() != nil {
		m.Swap = limits.GetSwap()
	}
	return m
}

func state(p ledger.ContainerPhase) api.ContainerState {
	switch p {
	case ledger.ContainerCreated:
		return api.ContainerState_CONTAINER_CREATED
	case ledger.ContainerRunning:
		return api.ContainerState_CONTAINER_RUNNING
	case ledger.ContainerExited, ledger.ContainerRemoving:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

func seccompProfile(c ledger.ContainerStatus) *api.SecurityProfile {
	switch c.Config.Seccomp {
	case spec.SeccompRuntimeDefault:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT}
	case spec.SeccompLocalhost:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_LOCALHOST, LocalhostRef: c.Config.SeccompProfile}
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// FromResources are limits in the words of NRI; what is unset is nil.
func FromResources(r spec.Resources) *api.LinuxResources {
	out := &api.LinuxResources{
		Cpu: &api.LinuxCPU{
			Shares: unsigned(r.CPUShares), Quota: signed(r.CPUQuota), Period: unsigned(r.CPUPeriod), Cpus: r.CpusetCPUs, Mems: r.CpusetMems,
		},
		Memory:  &api.LinuxMemory{Limit: signed(r.MemoryLimit), Swap: signed(r.MemorySwap)},
		Unified: maps.Clone(r.Unified),
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageLimits)) {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: size, Limit: r.HugepageLimits[size]})
	}
	return out
}

// ToResources is the opposite of FromResources.
func ToResources(r *api.LinuxResources) spec.Resources {
	cpu, memory := r.GetCpu(), r.GetMemory()
	out := spec.Resources{
		CPUShares: int64(cpu.GetShares().GetValue()), CPUQuota: cpu.GetQuota().GetValue(), CPUPeriod: int64(cpu.GetPeriod().GetValue()),
		CpusetCPUs: cpu.GetCpus(), CpusetMems: cpu.GetMems(),
		MemoryLimit: memory.GetLimit().GetValue(), MemorySwap: memory.GetSwap().GetValue(),
		Unified: maps.Clone(r.GetUnified()),
	}
	for _, l := range r.GetHugepageLimits() {
		if out.HugepageLimits == nil {
			out.HugepageLimits = map[string]uint64{}
		}
		out.HugepageLimits[l.GetPageSize()] = l.GetLimit()
	}
	return out
}

// Fixed names what of an update cannot change in a container that exists.
func Fixed(r *api.LinuxResources) []string {
	var out []string
	memory := r.GetMemory()
	for name, set := range map[string]bool{
		"pids": r.GetPids() != nil, "blockio_class": r.GetBlockioClass() != nil, "rdt_class": r.GetRdtClass() != nil,
		"devices": len(r.GetDevices()) > 0, "memory.reservation": memory.GetReservation() != nil,
		"memory.swappiness": memory.GetSwappiness() != nil, "memory.kernel": memory.GetKernel() != nil,
		"memory.kernel_tcp": memory.GetKernelTcp() != nil, "memory.disable_oom_killer": memory.GetDisableOomKiller() != nil,
		"cpu.realtime": r.GetCpu().GetRealtimeRuntime() != nil || r.GetCpu().GetRealtimePeriod() != nil,
	} {
		if set {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func signed(v int64) *api.OptionalInt64 {
	if v == 0 {
		return nil
	}
	return &api.OptionalInt64{Value: v}
}

func unsigned(v int64) *api.OptionalUInt64 {
	if v == 0 {
		return nil
	}
	return &api.OptionalUInt64{Value: uint64(v)}
}
