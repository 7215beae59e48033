package spec

import (
	"maps"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestNamespaces(t *testing.T) {
	type set = map[specs.LinuxNamespaceType]string
	p := plainPod()
	pod := set{specs.MountNamespace: "", specs.NetworkNamespace: p.NetNS, specs.IPCNamespace: p.IPCNS, specs.UTSNamespace: p.UTSNS}
	with := func(more set) set {
		s := maps.Clone(pod)
		maps.Copy(s, more)
		return s
	}
	for name, tc := range map[string]struct {
		change func(p *Pod, c *Container)
		want   set
	}{
		"own":       {func(_ *Pod, c *Container) {}, with(set{specs.PIDNamespace: "", specs.CgroupNamespace: ""})},
		"cgroup v1": {func(_ *Pod, c *Container) { c.UnifiedCgroup = false }, with(set{specs.PIDNamespace: ""})},
		"privileged": {func(p *Pod, c *Container) { p.Privileged, c.Privileged = true, true },
			with(set{specs.PIDNamespace: ""})},
		"pid of the pod": {func(_ *Pod, c *Container) { c.PID, c.PIDNS = PIDPath, "/proc/1/ns/pid" },
			with(set{specs.PIDNamespace: "/proc/1/ns/pid", specs.CgroupNamespace: ""})},
		"pid of the host": {func(_ *Pod, c *Container) { c.PID = PIDHost }, with(set{specs.CgroupNamespace: ""})},
		"users": {func(p *Pod, c *Container) { p.UserNS, c.UnifiedCgroup = "/run/user", false },
			with(set{specs.PIDNamespace: "", specs.UserNamespace: "/run/user"})},
		"all of the host": {func(p *Pod, c *Container) {
			p.NetNS, p.IPCNS, p.UTSNS, c.PID, c.UnifiedCgroup = "", "", "", PIDHost, false
		}, set{specs.MountNamespace: ""}},
	} {
		t.Run(name, func(t *testing.T) {
			got := set{}
			for _, ns := range build(t, tc.change).Linux.Namespaces {
				if _, twice := got[ns.Type]; twice {
					t.Errorf("%s is there twice", ns.Type)
				}
				got[ns.Type] = ns.Path
			}
			if !maps.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	wantError(t, "security_context.namespace_options.pid", func(_ *Pod, c *Container) { c.PID = PIDPath })
	wantError(t, "security_context.namespace_options.pid", func(_ *Pod, c *Container) { c.PID = 9 })
}
