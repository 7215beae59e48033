package spec

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/spec/spectest"
)

// containerdDefault is the specification that containerd's own library makes of nothing.
func containerdDefault(t *testing.T) *specs.Spec {
	t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), "k8s.io")
	s, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A workload that moves from containerd to here must not notice; nor may we hide less than they do.
func TestDefaultsAreThoseOfContainerd(t *testing.T) {
	theirs := containerdDefault(t)
	ours := build(t, func(_ *Pod, c *Container) { c.Capabilities = Capabilities{}; c.Mounts = nil })

	checkCapabilities(t, ours.Process.Capabilities.Bounding, theirs.Process.Capabilities.Bounding)
	checkCapabilities(t, ours.Process.Capabilities.Effective, theirs.Process.Capabilities.Effective)
	checkCapabilities(t, ours.Process.Capabilities.Permitted, theirs.Process.Capabilities.Permitted)
	masked := slices.DeleteFunc(slices.Clone(theirs.Linux.MaskedPaths), func(p string) bool {
		return strings.HasSuffix(p, "/thermal_throttle") // by CPU of this host, see Container.HostMaskedPaths
	})
	if !slices.Equal(ours.Linux.MaskedPaths, masked) {
		t.Errorf("masked paths: got  %q\nwant %q", ours.Linux.MaskedPaths, masked)
	}
	if !slices.Equal(ours.Linux.ReadonlyPaths, theirs.Linux.ReadonlyPaths) {
		t.Errorf("read-only paths: got  %q\nwant %q", ours.Linux.ReadonlyPaths, theirs.Linux.ReadonlyPaths)
	}
	for _, m := range theirs.Mounts {
		if m.Destination == "/run" || m.Destination == "/dev/shm" {
			continue // not in Kubernetes; the pod's
		}
		want := m.Source + " " + strings.Join(m.Options, ",")
		if got := mountsOn(ours, m.Destination); !slices.Equal(got, list(want)) {
			t.Errorf("mount on %s: got %q, want %q", m.Destination, got, want)
		}
	}
}

func TestHiddenPaths(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) { c.HostMaskedPaths = list("/sys/throttle") })
	if want := slices.Concat(defaultMaskedPaths, list("/sys/throttle")); !slices.Equal(s.Linux.MaskedPaths, want) {
		t.Errorf("got %q", s.Linux.MaskedPaths)
	}
	s = build(t, func(_ *Pod, c *Container) {
		c.MaskedPaths, c.ReadonlyPaths, c.HostMaskedPaths = list("/proc/x"), list("/proc/y"), list("/sys/throttle")
	})
	if !slices.Equal(s.Linux.MaskedPaths, list("/proc/x")) || !slices.Equal(s.Linux.ReadonlyPaths, list("/proc/y")) {
		t.Errorf("got %q, %q", s.Linux.MaskedPaths, s.Linux.ReadonlyPaths)
	}
	s = build(t, func(_ *Pod, c *Container) { c.MaskedPaths, c.ReadonlyPaths = []string{}, []string{} })
	if len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) != 0 {
		t.Errorf("got %q, %q", s.Linux.MaskedPaths, s.Linux.ReadonlyPaths)
	}
	p, c := privileged()
	c.MaskedPaths = list("/proc/x")
	s = mustBuild(t)(p, c)
	if len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) != 0 {
		t.Errorf("privileged: got %q, %q", s.Linux.MaskedPaths, s.Linux.ReadonlyPaths)
	}
}

func TestSELinux(t *testing.T) {
	label := func(_ *Pod, c *Container) {
		c.ProcessLabel, c.MountLabel = "u:r:container_t:s0:c1,c2", "u:r:container_file_t:s0:c1,c2"
	}
	if s := build(t, label); s.Process.SelinuxLabel != "u:r:container_t:s0:c1,c2" || s.Linux.MountLabel != "u:r:container_file_t:s0:c1,c2" {
		t.Errorf("labels %q, %q", s.Process.SelinuxLabel, s.Linux.MountLabel)
	}
	p, c := privileged()
	label(&p, &c)
	if s := mustBuild(t)(p, c); s.Process.SelinuxLabel != "" || s.Linux.MountLabel == "" {
		t.Errorf("privileged: labels %q, %q", s.Process.SelinuxLabel, s.Linux.MountLabel)
	}
}

func TestSeccomp(t *testing.T) {
	if s := build(t, func(_ *Pod, c *Container) {}); s.Linux.Seccomp != nil {
		t.Error("unconfined, yet a filter")
	}
	if s := mustBuild(t)(privileged()); s.Linux.Seccomp != nil {
		t.Error("privileged, yet a filter")
	}
	allows := func(s *specs.Spec, call string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(r specs.LinuxSyscall) bool {
			return r.Action == specs.ActAllow && len(r.Args) == 0 && slices.Contains(r.Names, call)
		})
	}
	plain := build(t, func(_ *Pod, c *Container) { c.Seccomp = SeccompRuntimeDefault })
	admin := build(t, func(_ *Pod, c *Container) {
		c.Seccomp, c.Capabilities = SeccompRuntimeDefault, Capabilities{Add: list("SYS_ADMIN")}
	})
	if allows(plain, "mount") || !allows(admin, "mount") || !allows(plain, "read") {
		t.Error("the filter does not go by the capabilities")
	}
	want, _ := json.Marshal(seccomp.DefaultProfile(plain))
	if got, _ := json.Marshal(plain.Linux.Seccomp); string(got) != string(want) {
		t.Error("the filter is not containerd's")
	}
	own := &specs.LinuxSeccomp{DefaultAction: specs.ActLog}
	if s := build(t, func(_ *Pod, c *Container) { c.Seccomp, c.SeccompProfile = SeccompLocalhost, own }); s.Linux.Seccomp != own {
		t.Errorf("the profile of the node became %+v", s.Linux.Seccomp)
	}
	wantError(t, "security_context.seccomp.localhost_ref", func(_ *Pod, c *Container) { c.Seccomp = SeccompLocalhost })
	wantError(t, "security_context.seccomp.profile_type", func(_ *Pod, c *Container) { c.Seccomp = 7 })
}

func TestPrivilegedNeedsPrivilegedPod(t *testing.T) {
	wantError(t, "security_context.privileged", func(_ *Pod, c *Container) { c.Privileged = true })
}

func TestNoNewPrivsAndRootFS(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) { c.NoNewPrivs, c.ReadOnlyRootFS, c.RootFS = false, true, "/r" })
	if s.Process.NoNewPrivileges || !s.Root.Readonly || s.Root.Path != "/r" {
		t.Errorf("got %v, %+v", s.Process.NoNewPrivileges, s.Root)
	}
	if s = build(t, func(_ *Pod, c *Container) { c.NoNewPrivs = true }); !s.Process.NoNewPrivileges || s.Root.Readonly {
		t.Errorf("got %v, %+v", s.Process.NoNewPrivileges, s.Root)
	}
}

func TestAnnotations(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) {
		c.Annotations = map[string]string{"a": "b", "io.kubernetes.cri.sandbox-id": "forged"}
	})
	for key, want := range map[string]string{
		"a": "b", "io.kubernetes.cri.sandbox-id": "p0d", "io.kubernetes.cri.container-type": "container",
		"io.kubernetes.cri.container-name": "nginx", "io.kubernetes.cri.image-name": "docker.io/library/nginx:1.29",
	} {
		if s.Annotations[key] != want {
			t.Errorf("%s is %q, want %q", key, s.Annotations[key], want)
		}
	}
}

func TestHiddenPathsAreAbsolute(t *testing.T) {
	wantError(t, "security_context.masked_paths", func(_ *Pod, c *Container) { c.MaskedPaths = list("/proc/kcore", "proc/keys") })
	wantError(t, "security_context.readonly_paths", func(_ *Pod, c *Container) { c.ReadonlyPaths = list("") })
}

// TestPodInit has process 1 of a pod confined, whoever it is there.
func TestPodInit(t *testing.T) {
	p := plainPod()
	for _, privileged := range []bool{false, true} {
		p.Privileged = privileged
		s := PodInit(p, Init{ID: "i", RootFS: "/r", Binary: "/b", AppArmorProfile: "profile", ProcessLabel: "label"})
		spectest.Check(t, s)
		if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno || !s.Process.NoNewPrivileges ||
			s.Process.ApparmorProfile != "profile" || s.Process.SelinuxLabel != "label" || len(s.Process.Capabilities.Bounding) > 0 {
			t.Errorf("process = %+v, filter = %v", s.Process, s.Linux.Seccomp)
		}
		for _, call := range []string{"bpf", "mount", "ptrace", "unshare"} { // ptrace needs no capability: no kernel is older than 4.8
			allowed := slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool { return slices.Contains(c.Names, call) })
			if allowed != (call == "ptrace") {
				t.Errorf("%s: allowed %v", call, allowed)
			}
		}
	}
}
