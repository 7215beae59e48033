package cri

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/signals"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

func containerConfig() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "busybox"},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
	}
}

// Every signal that the CRI has can be sent, and is told again as itself.
func TestStopSignals(t *testing.T) {
	for n, name := range runtimeapi.Signal_name {
		decoded := decodeSignal(runtimeapi.Signal(n))
		if n == 0 {
			if decoded != "" {
				t.Errorf("the default became %q", decoded)
			}
			continue
		}
		if _, err := signals.Parse(decoded); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := encodeSignal(decoded); got != runtimeapi.Signal(n) {
			t.Errorf("%s came back as %s", name, got)
		}
	}
	for written, want := range map[string]runtimeapi.Signal{
		"15": runtimeapi.Signal_SIGNAL_SIGTERM, "37": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "64": runtimeapi.Signal_SIGNAL_SIGRTMAX,
		"54": runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS10, "RTMIN+20": runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS10, "quit": runtimeapi.Signal_SIGNAL_SIGQUIT,
		"SIGNONE": runtimeapi.Signal_SIGNAL_SIGTERM, "33": runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		if got := encodeSignal(written); got != want {
			t.Errorf("%q became %s, want %s", written, got, want)
		}
	}
}

func TestUsersComeBack(t *testing.T) {
	users := &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD,
		Uids: []*runtimeapi.IDMapping{{HostId: 1000, ContainerId: 0, Length: 1}, {HostId: 70000, ContainerId: 1, Length: 9}},
		Gids: []*runtimeapi.IDMapping{{HostId: 65536, ContainerId: 0, Length: 10}},
	}
	n, err := decodeNamespaces("f", &runtimeapi.NamespaceOption{UsernsOptions: users})
	if err != nil {
		t.Fatal(err)
	}
	if got := encodeNamespaces(n).UsernsOptions; !proto.Equal(got, users) {
		t.Errorf("%v came back as %v", users, got)
	}
	n, err = decodeNamespaces("f", &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}})
	if err != nil || n.Users != nil || encodeNamespaces(n).UsernsOptions != nil {
		t.Errorf("mode NODE: %+v, %v", n, err)
	}
	c := containerConfig()
	c.Mounts = []*runtimeapi.Mount{{HostPath: "/", UidMappings: users.Uids, GidMappings: users.Gids}}
	got, err := decodeContainer(c)
	if err != nil || !reflect.DeepEqual(got.Mounts[0].Users, &idmap.Mappings{
		UIDs: []idmap.Range{{Container: 0, Host: 1000, Size: 1}, {Container: 1, Host: 70000, Size: 9}},
		GIDs: []idmap.Range{{Container: 0, Host: 65536, Size: 10}},
	}) {
		t.Errorf("mount of %+v, %v", got.Mounts, err)
	}
}

func TestSELinux(t *testing.T) {
	want := confine.SELinux{User: "u", Role: "r", Type: "t", Level: "s0"}
	c := containerConfig()
	c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0"}
	c.Mounts = []*runtimeapi.Mount{{HostPath: "/a", ContainerPath: "/a", SelinuxRelabel: true}, {HostPath: "/b", ContainerPath: "/b"}}
	got, err := decodeContainer(c)
	if err != nil || got.SELinux != want || !got.Mounts[0].Relabel || got.Mounts[1].Relabel {
		t.Errorf("container: %+v, %v", got, err)
	}
	for i, m := range encodeContainerStatus(sandbox.ContainerStatus{Config: got}).Mounts {
		if m.SelinuxRelabel != c.Mounts[i].SelinuxRelabel {
			t.Errorf("mount %d came back as %v", i, m)
		}
	}
	pod, err := decodePod(&runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{
		SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: c.Linux.SecurityContext.SelinuxOptions}}}, "")
	if err != nil || pod.SELinux != want {
		t.Errorf("pod: %+v, %v", pod, err)
	}
}

func imageMount(change func(*runtimeapi.Mount)) func(*runtimeapi.ContainerConfig) {
	m := &runtimeapi.Mount{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: "i"}}
	change(m)
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{m} }
}

// An image volume is what these ask for.
func TestImageMountAsItIs(t *testing.T) {
	c := containerConfig()
	imageMount(func(m *runtimeapi.Mount) { m.Readonly, m.RecursiveReadOnly, m.SelinuxRelabel = true, true, true })(c)
	if got, err := decodeContainer(c); err != nil || len(got.Mounts) > 0 {
		t.Errorf("%+v, %v", got.Mounts, err)
	}
}

func TestWrongFieldsAreRefused(t *testing.T) {
	for field, change := range map[string]func(*runtimeapi.ContainerConfig){
		"run_as_username": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{}
			c.Linux.SecurityContext.RunAsUsername = "x"
		},
		"run_as_group": func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{} },
		"envs: invalid: the value of K is not UTF-8": func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "K", Value: []byte{0xff}}}
		},
		"envs": func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}} },
		"apparmor.localhost_ref": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		},
		"apparmor_profile": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.ApparmorProfile = "mine" //nolint:staticcheck // deprecated, still sent
		},
		"seccomp.localhost_ref": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined, LocalhostRef: "/x"}
		},
		"seccomp.profile_type": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 9}
		},
		"seccomp_profile_path": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.SeccompProfilePath = "localhost/" //nolint:staticcheck // deprecated, still sent
		},
		"mounts[0].recursive_read_only": imageMount(func(m *runtimeapi.Mount) { m.RecursiveReadOnly = true }),
		"mounts[0].propagation": imageMount(func(m *runtimeapi.Mount) {
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}),
		"mounts[0].image.image":                          imageMount(func(m *runtimeapi.Mount) { m.Image.Image = "" }),
		"mounts[0].host_path: invalid: image is set too": imageMount(func(m *runtimeapi.Mount) { m.HostPath = "/a" }),
		"mounts[0].host_path":                            func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{{}} },
		"namespace_options.ipc": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_CONTAINER}
		},
	} {
		c := containerConfig()
		change(c)
		if _, err := decodeContainer(c); !errors.Is(err, errInvalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: err = %v", field, err)
		}
	}
	if _, err := decodeContainer(nil); !errors.Is(err, errInvalid) {
		t.Errorf("no configuration: %v", err)
	}
}

func TestPodDNSAddsNoLines(t *testing.T) {
	_, err := decodePod(&runtimeapi.PodSandboxConfig{DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\noptions evil"}}}, "")
	if !errors.Is(err, errInvalid) {
		t.Errorf("err = %v", err)
	}
}

func TestNamespaceModesComeBack(t *testing.T) {
	for _, m := range []runtimeapi.NamespaceMode{
		runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_TARGET,
	} {
		n, err := decodeNamespaces("f", &runtimeapi.NamespaceOption{Pid: m, TargetId: "t"})
		if err != nil {
			t.Fatal(err)
		}
		if got := encodeNamespaces(n); got.Pid != m || got.TargetId != "t" {
			t.Errorf("%s came back as %v", m, got)
		}
	}
	if n, err := decodeNamespaces("f", nil); err != nil || n.Network != want.NamespacePod {
		t.Errorf("no options: %+v, %v", n, err)
	}
}

func TestLabelSelector(t *testing.T) {
	labels := map[string]string{"a": "1", "b": "2"}
	for _, row := range []struct {
		selector map[string]string
		want     bool
	}{
		{nil, true}, {map[string]string{"a": "1"}, true}, {map[string]string{"a": "1", "b": "2"}, true},
		{map[string]string{"a": "2"}, false}, {map[string]string{"c": ""}, false},
	} {
		if got := matchLabels(row.selector, labels); got != row.want {
			t.Errorf("matchLabels(%v) = %t", row.selector, got)
		}
	}
}

//nolint:staticcheck // deprecated fields, which old clients still send
func TestProfiles(t *testing.T) {
	localhost := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
	for name, row := range map[string]struct {
		sc       *runtimeapi.LinuxContainerSecurityContext
		kind     spec.SeccompKind
		path     string
		appArmor confine.AppArmor
	}{
		"nothing": {},
		"new": {&runtimeapi.LinuxContainerSecurityContext{Seccomp: localhost, Apparmor: localhost}, spec.SeccompLocalhost, "/p.json",
			confine.AppArmor{Kind: confine.AppArmorLocalhost, Profile: "/p.json"}},
		"old": {&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//p.json", ApparmorProfile: "localhost/p"},
			spec.SeccompLocalhost, "/p.json", confine.AppArmor{Kind: confine.AppArmorLocalhost, Profile: "p"}},
		"old default": {&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "docker/default", ApparmorProfile: "runtime/default"},
			spec.SeccompRuntimeDefault, "", confine.AppArmor{Kind: confine.AppArmorRuntimeDefault}},
		"new default": {&runtimeapi.LinuxContainerSecurityContext{Seccomp: &runtimeapi.SecurityProfile{}, Apparmor: &runtimeapi.SecurityProfile{}},
			spec.SeccompRuntimeDefault, "", confine.AppArmor{Kind: confine.AppArmorRuntimeDefault}},
		"old unconfined": {&runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "unconfined", ApparmorProfile: "unconfined"},
			spec.SeccompUnconfined, "", confine.AppArmor{Kind: confine.AppArmorUnconfined}},
		"new wins": {&runtimeapi.LinuxContainerSecurityContext{Seccomp: &runtimeapi.SecurityProfile{}, SeccompProfilePath: "unconfined"},
			spec.SeccompRuntimeDefault, "", confine.AppArmor{}},
		"privileged": {&runtimeapi.LinuxContainerSecurityContext{Privileged: true, Seccomp: localhost}, spec.SeccompUnconfined, "", confine.AppArmor{}},
	} {
		kind, path, err := decodeSeccomp(row.sc)
		appArmor, aerr := decodeAppArmor(row.sc)
		if err != nil || aerr != nil || kind != row.kind || path != row.path || appArmor != row.appArmor {
			t.Errorf("%s: %v %q %+v, %v, %v", name, kind, path, appArmor, err, aerr)
		}
	}
}

// An empty list is procMount Unmasked; no security context at all has the defaults.
func TestHiddenPaths(t *testing.T) {
	c := containerConfig()
	if got, err := decodeContainer(c); err != nil || got.MaskedPaths == nil || got.ReadonlyPaths == nil || len(got.MaskedPaths)+len(got.ReadonlyPaths) > 0 {
		t.Errorf("empty: %v %v, %v", got.MaskedPaths, got.ReadonlyPaths, err)
	}
	c.Linux.SecurityContext.MaskedPaths = []string{"/x"}
	if got, err := decodeContainer(c); err != nil || len(got.MaskedPaths) != 1 {
		t.Errorf("own: %v, %v", got.MaskedPaths, err)
	}
	c.Linux = nil
	if got, err := decodeContainer(c); err != nil || got.MaskedPaths != nil || got.ReadonlyPaths != nil {
		t.Errorf("absent: %v %v, %v", got.MaskedPaths, got.ReadonlyPaths, err)
	}
}
