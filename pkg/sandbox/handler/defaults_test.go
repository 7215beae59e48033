package handler

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/spec"
)

func newSpec() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"/bin/sh"}, Env: []string{"A=own"}},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{}},
	}
}

func TestDefaultsGiveWay(t *testing.T) {
	u := Usable{Handler: Handler{Name: "h", Defaults: Defaults{
		Env: []string{"A=default", "AB=default"}, PidsLimit: 7,
		Ulimits:  []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}},
		Devices:  []Device{{"/dev/null", "rw"}, {"/dev/zero", "r"}},
		Timezone: "/etc/hostname",
	}}}
	s := newSpec()
	if err := u.Adapt(t.Context(), s, "pod", nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Process.Env, []string{"A=own", "AB=default"}) || *s.Linux.Resources.Pids.Limit != 7 ||
		!slices.Equal(s.Process.Rlimits, u.Ulimits) {
		t.Errorf("process = %+v, resources = %+v", s.Process, s.Linux.Resources)
	}
	c := spec.Container{
		Devices: []spec.Device{{LinuxDevice: specs.LinuxDevice{Path: "/dev/null"}, Permissions: "w"}},
	}
	if err := u.Prepare(&c); err != nil {
		t.Fatal(err)
	}
	if len(c.Devices) != 2 || c.Devices[0].Permissions != "w" || c.Devices[1].Path != "/dev/zero" || c.Devices[1].Minor != 5 {
		t.Errorf("devices = %+v", c.Devices)
	}
	if len(c.Mounts) != 1 || c.Mounts[0].Destination != "/etc/localtime" || !c.Mounts[0].ReadOnly {
		t.Errorf("mounts = %+v", c.Mounts)
	}
	if err := u.Prepare(&c); err != nil || len(c.Mounts) != 1 {
		t.Errorf("mounts = %+v, %v: the container's own counts", c.Mounts, err)
	}
	u.Devices = []Device{{"/dev/no-such", "r"}}
	if err := u.Prepare(&c); err == nil || !strings.Contains(err.Error(), "/dev/no-such of runtime handler h") {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestPodSysctls(t *testing.T) {
	u := Usable{Handler: Handler{Defaults: Defaults{Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}}}}
	for _, c := range []struct {
		own            map[string]string
		ownNet, ownIPC bool
		want           map[string]string
	}{
		{nil, true, true, u.Sysctls},
		{nil, false, true, map[string]string{"kernel.shm_rmid_forced": "1"}},
		{nil, false, false, map[string]string{}},
		{map[string]string{"net/ipv4/ip_forward": "0"}, true, false, map[string]string{"net/ipv4/ip_forward": "0"}},
	} {
		if got := u.PodSysctls(c.own, c.ownNet, c.ownIPC); !maps.Equal(got, c.want) {
			t.Errorf("own %v, net %v, ipc %v: %v, want %v", c.own, c.ownNet, c.ownIPC, got, c.want)
		}
	}
}

func TestHooks(t *testing.T) {
	dir := t.TempDir()
	hook := `{"version":"1.0.0","hook":{"path":"/bin/true"},"when":{"annotations":{"^want$":"yes"}},"stages":["poststop"]}`
	if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(hook), 0o600); err != nil {
		t.Fatal(err)
	}
	u := Usable{Handler: Handler{Name: "h", Command: &runtime.Command{}, PodAnnotations: []string{"want"}, Defaults: Defaults{
		Hooks: specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/a"}}}, HooksDirs: []string{dir, dir + "/none"},
	}}}
	for _, want := range []int{0, 1, 0} {
		s := newSpec()
		annotations := map[string]string{}
		if want == 1 {
			annotations["want"] = "yes"
		}
		if err := u.Adapt(t.Context(), s, "pod", annotations); err != nil {
			t.Fatal(err)
		}
		if len(s.Hooks.CreateRuntime) != 1 || len(s.Hooks.Poststop) != want {
			t.Errorf("hooks = %+v, want %d of the directory", s.Hooks, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "b.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := u.Adapt(t.Context(), newSpec(), "pod", nil); err == nil || !strings.Contains(err.Error(), "b.json") {
		t.Errorf("a hook that is no JSON: %v", err)
	}
}

// TestOwnHooks gives specifications that have hooks, as of CDI devices, to handlers without and with hooks of each kind.
func TestOwnHooks(t *testing.T) {
	every := func(path string) specs.Hooks {
		h := []specs.Hook{{Path: path}}
		//nolint:staticcheck // Prestart is deprecated, and what most hooks still are
		return specs.Hooks{Prestart: h, CreateRuntime: h, CreateContainer: h, StartContainer: h, Poststart: h, Poststop: h}
	}
	dir := t.TempDir()
	hook := `{"version":"1.0.0","hook":{"path":"/bin/true"},"when":{"always":true},` +
		`"stages":["createRuntime","createContainer","startContainer","poststart","poststop"]}`
	if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(hook), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		handler Defaults
		want    []string
	}{
		"none":                {Defaults{}, []string{"/cdi"}},
		"the handler's":       {Defaults{Hooks: every("/handler")}, []string{"/cdi", "/handler"}},
		"and its directory's": {Defaults{Hooks: every("/handler"), HooksDirs: []string{dir}}, []string{"/cdi", "/handler", "/bin/true"}},
	} {
		u := Usable{Handler: Handler{Name: "h", Command: &runtime.Command{}, Defaults: c.handler}}
		s := newSpec()
		s.Hooks = new(every("/cdi"))
		if err := u.Adapt(t.Context(), s, "pod", nil); err != nil {
			t.Fatal(err)
		}
		for i, kind := range [][]specs.Hook{
			s.Hooks.Prestart, //nolint:staticcheck // see above
			s.Hooks.CreateRuntime, s.Hooks.CreateContainer, s.Hooks.StartContainer, s.Hooks.Poststart, s.Hooks.Poststop,
		} {
			var got []string
			for _, h := range kind {
				got = append(got, h.Path)
			}
			want := c.want
			if i == 0 && len(c.handler.HooksDirs) > 0 {
				want = want[:2] // of oci-hooks(5) "prestart" is another name of "createRuntime"
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: kind %d: %q, want %q", name, i, got, want)
			}
		}
	}
}

func TestAllowedUlimits(t *testing.T) {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	low := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 5, Hard: 10}}
	if got := PossibleUlimits("h", low); !slices.Equal(got, low) {
		t.Errorf("low = %+v", got)
	}
	high := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 5, Hard: own.Max + 1}}
	want := own.Max + 1
	if !mayRaise() {
		want = own.Max
	}
	if got := PossibleUlimits("h", high); got[0].Hard != want || got[0].Soft != 5 {
		t.Errorf("high = %+v, want %d", got, want)
	}
}
