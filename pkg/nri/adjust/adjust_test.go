package adjust

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/spec"
)

// container is a specification as package spec makes it, in short, and the same for plugins.
func container() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{
			Args: []string{"sh"}, Env: []string{"A=1", "B=2"},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 5, Soft: 5}, {Type: "RLIMIT_NOFILE", Hard: 64, Soft: 64}},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/a/b", Type: "bind", Source: "/x", Options: []string{"rbind"}}},
		Linux: &specs.Linux{
			CgroupsPath: "/p/c", Resources: &specs.LinuxResources{}, Devices: []specs.LinuxDevice{{Path: "/dev/old"}},
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.IPCNamespace, Path: "/ipc"}},
		},
	}
}

func adjusted(t *testing.T, limits spec.Resources, change func(*api.ContainerAdjustment)) (*specs.Spec, spec.Resources, error) {
	t.Helper()
	s, a := container(), &api.ContainerAdjustment{}
	change(a)
	left := &api.Container{Env: s.Process.Env, Linux: &api.LinuxContainer{Devices: api.FromOCILinuxDevices(s.Linux.Devices)}}
	got, err := Spec(t.Context(), s, a, left, limits, nil)
	return s, got, err
}

func TestLimits(t *testing.T) {
	before := spec.Resources{MemoryLimit: 100 << 20, CPUShares: 500, OOMScoreAdj: 5}
	s, got, err := adjusted(t, before, func(a *api.ContainerAdjustment) {
		a.SetLinuxMemoryLimit(50 << 20)
		a.SetLinuxMemoryReservation(20 << 20)
		a.SetLinuxCPUQuota(20000)
		a.SetLinuxPidLimits(7)
		score := 900
		a.SetLinuxOomScoreAdj(&score)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.MemoryLimit != 50<<20 || got.CPUShares != 500 || got.CPUQuota != 20000 || got.OOMScoreAdj != 900 {
		t.Errorf("limits %+v", got)
	}
	r := s.Linux.Resources
	if *r.Memory.Limit != 50<<20 || *r.Memory.Reservation != 20<<20 || *r.CPU.Quota != 20000 || *r.CPU.Shares != 500 || *r.Pids.Limit != 7 {
		t.Errorf("resources %+v %+v %+v", r.Memory, r.CPU, r.Pids)
	}
	if swap := r.Memory.Swap; swap != nil && *swap != 50<<20 { // nil where the kernel cannot limit it
		t.Errorf("swap %d", *swap)
	}
	if *s.Process.OOMScoreAdj != 900 {
		t.Errorf("score %d", *s.Process.OOMScoreAdj)
	}
}

// A container of which nothing is changed stays as it is, but for empty lists.
func TestNothing(t *testing.T) {
	limits := spec.Resources{MemoryLimit: 100 << 20}
	s, got, err := adjusted(t, limits, func(*api.ContainerAdjustment) {})
	if err != nil || got.MemoryLimit != 100<<20 {
		t.Fatalf("%+v, %v", got, err)
	}
	want := container()
	if !slices.Equal(s.Process.Env, want.Process.Env) || len(s.Mounts) != 2 || s.Linux.CgroupsPath != "/p/c" || len(s.Linux.Devices) != 1 || s.Hooks != nil {
		t.Errorf("%+v %+v", s.Process, s.Linux)
	}
}

func TestParts(t *testing.T) {
	s, _, err := adjusted(t, spec.Resources{}, func(a *api.ContainerAdjustment) {
		a.AddEnv("A", "3")
		a.AddEnv("C", "4")
		a.AddRlimit("RLIMIT_CORE", 3, 2)
		a.AddMount(&api.Mount{Destination: "/a", Type: "bind", Source: "/y", Options: []string{"rbind"}})
		a.RemoveMount("/proc")
		a.AddDevice(&api.LinuxDevice{Path: "/dev/new", Type: "c", Major: 1, Minor: 5})
		a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "ipc", Path: "/other"})
		a.SetLinuxSysctl("net.a", "1")
		a.AddHooks(&api.Hooks{Prestart: []*api.Hook{{Path: "/1"}}, Poststop: []*api.Hook{{Path: "/2"}}})
		a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ERRNO", DefaultErrno: api.UInt32(uint32(38))})
		a.SetLinuxScheduler(&api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH})
		a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_IDLE})
		a.AddLinuxNetDevice("eth9", &api.LinuxNetDevice{Name: "eth1"})
		a.SetLinuxRDTClass("gold")
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.Process.Env, " "); got != "A=3 B=2 C=4" {
		t.Errorf("environment %s", got)
	}
	if got := s.Process.Rlimits; len(got) != 2 || got[0] != (specs.POSIXRlimit{Type: "RLIMIT_CORE", Hard: 3, Soft: 2}) {
		t.Errorf("rlimits %v", got)
	}
	if len(s.Mounts) != 2 || s.Mounts[0].Destination != "/a" || s.Mounts[1].Destination != "/a/b" {
		t.Errorf("mounts %v: the upper one must come first", s.Mounts)
	}
	if len(s.Linux.Devices) != 2 || len(s.Linux.Resources.Devices) != 1 || !s.Linux.Resources.Devices[0].Allow {
		t.Errorf("devices %v, rules %v", s.Linux.Devices, s.Linux.Resources.Devices)
	}
	if n := s.Linux.Namespaces; len(n) != 2 || n[1].Path != "/other" {
		t.Errorf("namespaces %v", n)
	}
	if s.Linux.Sysctl["net.a"] != "1" || len(s.Hooks.Prestart) != 1 || len(s.Hooks.Poststop) != 1 || *s.Linux.Seccomp.DefaultErrnoRet != 38 { //nolint:staticcheck // deprecated
		t.Errorf("sysctls %v, hooks %v, seccomp %v", s.Linux.Sysctl, s.Hooks, s.Linux.Seccomp)
	}
	if s.Process.Scheduler.Policy != specs.SchedBatch || s.Process.IOPriority.Class != specs.IOPRIO_CLASS_IDLE ||
		s.Linux.NetDevices["eth9"].Name != "eth1" || s.Linux.IntelRdt.ClosID != "gold" {
		t.Errorf("scheduler, I/O priority, network devices, RDT: %+v %+v", s.Process, s.Linux)
	}
}

// What plugins have taken away is missing from the container that the last one has seen.
func TestRemovals(t *testing.T) {
	s := container()
	left := &api.Container{Env: []string{"B=2"}, Linux: &api.LinuxContainer{}}
	if _, err := Spec(t.Context(), s, &api.ContainerAdjustment{}, left, spec.Resources{}, nil); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.Process.Env, " "); got != "B=2" || len(s.Linux.Devices) != 0 {
		t.Errorf("environment %s, devices %v", got, s.Linux.Devices)
	}
}

func TestRefusals(t *testing.T) {
	for names, change := range map[string]func(*api.ContainerAdjustment){
		"cgroups_path": func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/a/../b") },
		"RLIMIT_X":     func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_X", 1, 1) },
		"cpu_period":   func(a *api.ContainerAdjustment) { a.SetLinuxCPUPeriod(3) },
		"namespaces":   func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "net"}) },
		"CDI_devices":  func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "v/c=none"}) },
		"block I/O":    func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("none") },
		"propagation": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/m", Source: "/proc/self/status", Type: "bind", Options: []string{"rbind", "rshared"}})
		},
	} {
		if _, _, err := adjusted(t, spec.Resources{}, change); err == nil || !strings.Contains(err.Error(), names) {
			t.Errorf("%v does not name %s", err, names)
		}
	}
}
