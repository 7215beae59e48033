package spectest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/device"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/qosclass"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/spec"
)

func build(t *testing.T) *specs.Spec {
	t.Helper()
	s, err := spec.Build(spec.Pod{ID: "p", Name: "p", Namespace: "n", UID: "u", NetNS: "/run/net", IPCNS: "/run/ipc", UTSNS: "/run/uts",
		ShmPath: "/run/shm", CgroupPath: "/pods/p"}, spec.Container{ID: "c", Name: "c", RootFS: "/run/c/rootfs", Command: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestErrors breaks the rules one by one.
func TestErrors(t *testing.T) {
	if errs := Errors(t, build(t)); len(errs) > 0 {
		t.Fatalf("what is to be broken is broken before: %v", errs)
	}
	for name, c := range map[string]struct {
		spoil func(s *specs.Spec)
		want  string
	}{
		"no version":         {func(s *specs.Spec) { s.Version = "" }, "SemVer"},
		"relative directory": {func(s *specs.Spec) { s.Process.Cwd = "here" }, "cwd"},
		"nothing to run":     {func(s *specs.Spec) { s.Process.Args = nil }, "args"},
		"environment":        {func(s *specs.Spec) { s.Process.Env = []string{"A B=c"} }, "A B=c"},
		"capability":         {func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_FLY"} }, "CAP_FLY"},
		"limit twice": {func(s *specs.Spec) {
			s.Process.Rlimits = slices.Repeat([]specs.POSIXRlimit{{Type: "RLIMIT_NOFILE"}}, 2)
		}, "RLIMIT_NOFILE"},
		"mount":                {func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "etc"}) }, "etc"},
		"namespace":            {func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "nothing" }, "namespaces.0"},
		"namespace twice":      {func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) }, "duplicated namespace"},
		"mapping of no user":   {func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, "User namespace"},
		"device":               {func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "z"}} }, "devices"},
		"device's permissions": {func(s *specs.Spec) { s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Access: "x"}} }, "access"},
		"memory and swap": {func(s *specs.Spec) {
			a, b := int64(2), int64(1)
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &a, Swap: &b}
		}, "memory"},
		"page size":   {func(s *specs.Spec) { s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2 MB"}} }, "hugepageLimits"},
		"masked path": {func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"proc"} }, "maskedPath"},
		"propagation": {func(s *specs.Spec) { s.Linux.RootfsPropagation = "wide" }, "rootfsPropagation"},
		"seccomp":     {func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_SLEEP"} }, "seccomp.defaultAction"},
		"hook":        {func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: ""}}} }, "Hook.Path"},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t)
			c.spoil(s)
			if errs := fmt.Sprint(Errors(t, s)); !strings.Contains(errs, c.want) {
				t.Errorf("errors %q, want one of %s", errs, c.want)
			}
		})
	}
}

// TestAllParts is of a container with all that a pod, its annotations, CDI files, and the operator can give it, put together as the
// package sandbox does.
func TestAllParts(t *testing.T) {
	dir := t.TempDir()
	cdi := `{"cdiVersion": "0.7.0", "kind": "vendor.com/gpu", "devices": [{"name": "a", "containerEdits": {
		"env": ["GPU=a"], "deviceNodes": [{"path": "/dev/gpu-a", "hostPath": "/dev/null"}],
		"mounts": [{"hostPath": "/etc", "containerPath": "/gpu", "options": ["ro", "bind"]}],
		"hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook", "args": ["hook", "gpu"]}],
		"additionalGids": [44]}}]}`
	blockio := "classes:\n  slow:\n  - weight: 70\n"
	hook := `{"version": "1.0.0", "hook": {"path": "/bin/true"}, "when": {"always": true}, "stages": ["prestart", "poststop"]}`
	for name, text := range map[string]string{"cdi/v.json": cdi, "hooks/h.json": hook, "blockio.yaml": blockio} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := qosclass.Configure("", filepath.Join(dir, "blockio.yaml")); err != nil {
		t.Fatal(err)
	}
	h := allDefaults(filepath.Join(dir, "hooks"))
	c := allFields(t)
	if err := h.Prepare(&c); err != nil {
		t.Fatal(err)
	}
	s, err := spec.Build(spec.Pod{ID: "p", Name: "p", Namespace: "n", UID: "u", Hostname: "h", NetNS: "/run/net", IPCNS: "/run/ipc",
		UTSNS: "/run/uts", ShmPath: "/run/shm", ResolvConf: "/run/resolv.conf", HostnameFile: "/run/hostname", HostsFile: "/run/hosts",
		CgroupPath: "/pods/p"}, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := device.InjectCDI(t.Context(), []string{filepath.Join(dir, "cdi")}, s, []string{"vendor.com/gpu=a"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Adapt(t.Context(), s, "pod", map[string]string{"com.example.pod.a": "b"}); err != nil {
		t.Fatal(err)
	}
	if err := (qosclass.Classes{}).Apply(s, "c", c.Annotations, nil); err != nil {
		t.Fatal(err)
	}
	s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold"} // qosclass needs resctrl for it
	r := s.Linux.Resources
	if s.Linux.Seccomp == nil || s.Process.ApparmorProfile == "" || s.Process.SelinuxLabel == "" || s.Linux.MountLabel == "" || len(s.Linux.Devices) < 4 || len(r.HugepageLimits) == 0 ||
		r.BlockIO == nil || r.Pids == nil || len(r.Unified) == 0 || len(s.Process.Rlimits) == 0 || len(s.Hooks.Poststop) < 2 ||
		!slices.Contains(s.Process.Env, "GPU=a") || s.Annotations["com.example.pod.a"] != "b" {
		t.Errorf("a part is missing: %+v", s)
	}
	Check(t, s)
}

// allDefaults is a handler with all that an operator can say of one.
func allDefaults(hooksDir string) handler.Usable {
	limit, hook := 10, []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat"}, Env: []string{"A=b"}}}
	hook[0].Timeout = &limit
	return handler.Usable{
		Handler: handler.Handler{
			Name: "h", Command: &runtime.Command{Path: "/usr/bin/crun"}, PodAnnotations: []string{"com.example.pod.*"},
			Annotations: map[string]string{"com.example.handler": "b"},
			Defaults: handler.Defaults{
				Env: []string{"HTTP_PROXY=http://proxy"}, Ulimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}},
				Devices: []handler.Device{{Path: "/dev/full", Permissions: "r"}}, Timezone: "/etc/hosts", PidsLimit: 100,
				Hooks:     specs.Hooks{CreateRuntime: hook, CreateContainer: hook, StartContainer: hook, Poststart: hook, Poststop: hook},
				HooksDirs: []string{hooksDir},
			},
		},
		SpecVersion: specs.Version, Features: handler.Features{RecursiveReadOnlyMounts: true},
	}
}

// allFields is a container that leaves nothing out.
func allFields(t *testing.T) spec.Container {
	t.Helper()
	devices, err := device.Find(t.Context(), nil, []device.Want{{HostPath: "/dev/zero"}, {HostPath: "/dev/random", ContainerPath: "/dev/dice", Permissions: "r"}})
	if err != nil {
		t.Fatal(err)
	}
	return spec.Container{
		ID: "c", Name: "c", ImageName: "docker.io/library/all:1", RootFS: "/run/c/rootfs",
		Image:   ocispec.ImageConfig{Env: []string{"PATH=/bin", "LANG=C.UTF-8"}, User: "1:2", WorkingDir: "/srv"},
		Command: []string{"/bin/all"}, Args: []string{"--of=it"}, WorkingDir: "/work", Env: []string{"empty="},
		Mounts: []spec.Mount{
			{Source: "/srv/a", Destination: "/a", Propagation: spec.PropagationBidirectional},
			{Source: "/srv/b", Destination: "/b", ReadOnly: true, RecursiveReadOnly: true},
			{Source: "/srv/c", Destination: "/c", Propagation: spec.PropagationHostToContainer, Options: []string{"nodev", "noexec", "nosuid"}},
		},
		Annotations: map[string]string{"io.kubernetes.cri.blockio-class": "slow"},
		TTY:         true,
		User:        spec.User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{5, 6}, Home: "/home/a"},
		NoNewPrivs:  true, ReadOnlyRootFS: true,
		Capabilities:    spec.Capabilities{Add: []string{"ALL"}, Drop: []string{"SYS_BOOT"}, Ambient: []string{"NET_BIND_SERVICE"}},
		HostMaskedPaths: []string{"/sys/devices/system/cpu/cpu0/thermal_throttle"},
		Seccomp:         spec.SeccompRuntimeDefault, AppArmorProfile: "cri-default",
		ProcessLabel: "system_u:system_r:container_t:s0:c1,c2", MountLabel: "system_u:object_r:container_file_t:s0:c1,c2",
		Devices: devices,
		Resources: spec.Resources{
			CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, MemoryLimit: 64 << 20, MemorySwap: 128 << 20, CpusetCPUs: "0-1", CpusetMems: "0",
			OOMScoreAdj: -500, HugepageLimits: map[string]uint64{"2MB": 4 << 20, "1GB": 0}, Unified: map[string]string{"memory.high": "50000000"},
		},
		SwapAccounting: true, UnifiedCgroup: true, CgroupMountOptions: []string{"nsdelegate"}, MayLowerOOMScore: true,
	}
}
