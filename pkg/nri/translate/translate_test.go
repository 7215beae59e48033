package translate

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

var limits = spec.Resources{
	CPUPeriod: 100000, CPUQuota: -1, CPUShares: 512, MemoryLimit: 1 << 30, MemorySwap: 2 << 30, CpusetCPUs: "0-1", CpusetMems: "0",
	HugepageLimits: map[string]uint64{"2MB": 4 << 20, "1GB": 0}, Unified: map[string]string{"memory.high": "1"},
}

func TestResourcesThereAndBack(t *testing.T) {
	for name, r := range map[string]spec.Resources{"all": limits, "none": {}, "one": {CPUQuota: 5000}} {
		if got := ToResources(FromResources(r)); !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v, want %+v", name, got, r)
		}
	}
	if none := FromResources(spec.Resources{}); none.Cpu.Shares != nil || none.Memory.Limit != nil || none.Memory.Swap != nil {
		t.Errorf("what is unset is told as %v", none)
	}
	if got := ToResources(nil); !reflect.DeepEqual(got, spec.Resources{}) {
		t.Errorf("nothing is %+v", got)
	}
}

func TestFixed(t *testing.T) {
	if got := Fixed(FromResources(limits)); len(got) > 0 {
		t.Errorf("what can change is said to be fixed: %q", got)
	}
	r := &api.LinuxResources{
		Pids: &api.LinuxPids{Limit: 5}, RdtClass: api.String("a"), Memory: &api.LinuxMemory{Swappiness: api.UInt64(5)},
		Cpu: &api.LinuxCPU{RealtimePeriod: api.UInt64(5)},
	}
	if got := strings.Join(Fixed(r), " "); got != "cpu.realtime memory.swappiness pids rdt_class" {
		t.Errorf("fixed: %s", got)
	}
}

func TestPod(t *testing.T) {
	got := Pod(ledger.PodStatus{
		ID: "p", CgroupPath: "/pods/p", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
		Config: want.Pod{
			Name: "n", Namespace: "ns", UID: "u", Handler: "runc", CgroupParent: "/pods/p", Resources: limits,
			Overhead: spec.Resources{CPUShares: 7}, Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"},
		},
	}, []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/ns/net"}})
	if got.Id != "p" || got.Name != "n" || got.Namespace != "ns" || got.Uid != "u" || got.RuntimeHandler != "runc" ||
		got.Labels["a"] != "b" || got.Annotations["c"] != "d" || strings.Join(got.Ips, " ") != "10.0.0.2 fd00::2" {
		t.Errorf("pod %v", got)
	}
	l := got.Linux
	if l.CgroupParent != "/pods/p" || l.CgroupsPath != "/pods/p" || l.PodOverhead.Cpu.Shares.Value != 7 || l.PodResources.Memory.Limit.Value != 1<<30 {
		t.Errorf("pod %v", l)
	}
	if len(l.Namespaces) != 1 || l.Namespaces[0].Type != "network" || l.Namespaces[0].Path != "/ns/net" {
		t.Errorf("namespaces %v", l.Namespaces)
	}
}

// status is a container, with a specification from before its limits were changed.
func status() (ledger.ContainerStatus, *specs.Spec) {
	old, pids, score := int64(1<<20), int64(9), 500
	s := &specs.Spec{
		Annotations: map[string]string{"of": "the specification", "c": "old"},
		Mounts:      []specs.Mount{{Destination: "/m", Type: "bind", Source: "/s", Options: []string{"ro"}}},
		Hooks:       &specs.Hooks{Poststart: []specs.Hook{{Path: "/h"}}},
		Process: &specs.Process{
			Args: []string{"sh"}, Env: []string{"A=b"}, OOMScoreAdj: &score, User: specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7}},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 2, Soft: 1}}, IOPriority: &specs.LinuxIOPriority{Class: "IOPRIO_CLASS_BE", Priority: 3},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/by/plugin", Sysctl: map[string]string{"s": "1"}, Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}},
			Devices: []specs.LinuxDevice{{Path: "/dev/d", Type: "c", Major: 1, Minor: 3}}, Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow},
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &old, Swap: &old, Reservation: &old}, Pids: &specs.LinuxPids{Limit: &pids},
			},
			IntelRdt: &specs.LinuxIntelRdt{ClosID: "gold"},
		},
	}
	return ledger.ContainerStatus{
		ID: "c", PodID: "p", Phase: ledger.ContainerExited, CgroupPath: "/pods/p/c", PID: 77, ExitCode: 3, Reason: "Error", Message: "m",
		CreatedAt: time.Unix(1, 0), FinishedAt: time.Unix(3, 0), ImageID: "sha256:1", ImageRef: "r@sha256:2", User: spec.User{UID: 1},
		Config: want.Container{
			Name: "n", ImageName: "busybox", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}, Resources: limits,
			CDIDevices: []string{"v/c=d"}, Seccomp: spec.SeccompLocalhost, SeccompProfile: "/profile",
		},
	}, s
}

func TestContainer(t *testing.T) {
	c, s := status()
	got := Container(c, s)
	if got.Id != "c" || got.PodSandboxId != "p" || got.Name != "n" || got.State != api.ContainerState_CONTAINER_STOPPED || got.Pid != 77 ||
		got.CreatedAt != 1e9 || got.StartedAt != 0 || got.FinishedAt != 3e9 || got.ExitCode != 3 || got.StatusReason != "Error" || got.StatusMessage != "m" {
		t.Errorf("container %v", got)
	}
	if got.Labels["a"] != "b" || got.Annotations["c"] != "d" || got.Annotations["of"] != "the specification" || got.Image.Name != "busybox" ||
		got.Image.ConfigDigest != "sha256:1" || got.CDIDevices[0].Name != "v/c=d" {
		t.Errorf("labels, annotations, image, devices: %v %v %v %v", got.Labels, got.Annotations, got.Image, got.CDIDevices)
	}
	if got.Args[0] != "sh" || got.Env[0] != "A=b" || got.User.Uid != 5 || got.User.AdditionalGids[0] != 7 || got.Rlimits[0].Hard != 2 ||
		got.Mounts[0].Source != "/s" || got.Hooks.Poststart[0].Path != "/h" {
		t.Errorf("process, mounts, hooks: %v", got)
	}
	l := got.Linux
	if l.CgroupsPath != "/by/plugin" || l.OomScoreAdj.Value != 500 || l.IoPriority.Priority != 3 || l.Sysctl["s"] != "1" ||
		l.Namespaces[0].Type != "pid" || l.Devices[0].Path != "/dev/d" || l.Rdt.ClosId.Value != "gold" || l.SeccompPolicy.DefaultAction != "SCMP_ACT_ALLOW" ||
		l.SeccompProfile.ProfileType != api.SecurityProfile_LOCALHOST || l.SeccompProfile.LocalhostRef != "/profile" {
		t.Errorf("linux: %v", l)
	}
	r := l.Resources
	if r.Memory.Limit.Value != 1<<30 || r.Memory.Swap.Value != 2<<30 || r.Memory.Reservation.Value != 1<<20 || r.Pids.Limit != 9 ||
		r.Cpu.Shares.Value != 512 || r.Unified["memory.high"] != "1" || len(r.HugepageLimits) != 2 {
		t.Errorf("resources must be those of now, and the specification's for the rest: %v", r)
	}
	c.Config.Labels["a"], s.Process.Args[0] = "changed", "changed"
	if got.Labels["a"] != "b" || got.Args[0] != "sh" {
		t.Error("what plugins are told shares memory with what is known")
	}
}

func TestContainerWithoutSpecification(t *testing.T) {
	c, _ := status()
	got := Container(c, nil)
	if got.Id != "c" || got.Linux.CgroupsPath != "/pods/p/c" || got.User.Uid != 1 || got.Linux.Resources.Cpu.Shares.Value != 512 || got.Annotations["c"] != "d" {
		t.Errorf("container %v", got)
	}
}
