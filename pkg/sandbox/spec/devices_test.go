package spec

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestDevices(t *testing.T) {
	fuse := Device{LinuxDevice: specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}, Permissions: "rw"}
	tun := specs.LinuxDevice{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200}

	s := build(t, func(_ *Pod, c *Container) { c.Devices, c.HostDevices = []Device{fuse}, []specs.LinuxDevice{tun} })
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/fuse" {
		t.Errorf("devices %+v", d)
	}
	rules := s.Linux.Resources.Devices
	if len(rules) != 2 || rules[0].Allow || rules[0].Type != "" || rules[0].Access != "rwm" {
		t.Fatalf("not all is denied first: %+v", rules)
	}
	if r := rules[1]; !r.Allow || r.Type != "c" || *r.Major != 10 || *r.Minor != 229 || r.Access != "rw" {
		t.Errorf("rule of the device: %+v", r)
	}
	wantError(t, "devices.permissions", func(_ *Pod, c *Container) { fuse.Permissions = "rx"; c.Devices = []Device{fuse} })
	wantError(t, "devices.permissions", func(_ *Pod, c *Container) { fuse.Permissions = ""; c.Devices = []Device{fuse} })
	wantError(t, "devices.container_path", func(_ *Pod, c *Container) { fuse.Path = "fuse"; c.Devices = []Device{fuse} })
}

func TestDevicesOfPrivileged(t *testing.T) {
	own := Device{LinuxDevice: specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 1, Minor: 3}, Permissions: "r"}
	p, c := privileged()
	c.Devices = []Device{own}
	c.HostDevices = append(c.HostDevices, specs.LinuxDevice{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200})
	s := mustBuild(t)(p, c)
	if d := s.Linux.Devices; len(d) != 2 || d[0].Major != 1 || d[1].Path != "/dev/net/tun" {
		t.Errorf("devices %+v", d)
	}
	if r := s.Linux.Resources.Devices; len(r) != 1 || !r[0].Allow || r[0].Access != "rwm" {
		t.Errorf("rules %+v", r)
	}
}
