package spec

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// setDevices sets the device nodes and who may use them. The nodes that every container has (null, zero, full,
// random, urandom, tty, ptmx; config-linux.md, "Default Devices") are the OCI runtime's to make and to allow.
func setDevices(s *specs.Spec, _ Pod, c Container) error {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range c.Devices {
		if !path.IsAbs(d.Path) {
			return Invalidf("devices.container_path", "%q is not absolute", d.Path)
		}
		if d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" {
			return Invalidf("devices.permissions", `%q, of %s, is not made of "rwm"`, d.Permissions, d.Path)
		}
		major, minor := d.Major, d.Minor
		s.Linux.Devices = append(s.Linux.Devices, d.LinuxDevice)
		rules = append(rules, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: d.Permissions,
		})
	}
	if c.Privileged {
		for _, d := range c.HostDevices {
			if !slices.ContainsFunc(c.Devices, func(own Device) bool { return own.Path == d.Path }) {
				s.Linux.Devices = append(s.Linux.Devices, d)
			}
		}
		rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	s.Linux.Resources.Devices = rules
	return nil
}
