package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// mountsOn are the mounts on destination, as "source option,option".
func mountsOn(s *specs.Spec, destination string) []string {
	var found []string
	for _, m := range s.Mounts {
		if m.Destination == destination {
			found = append(found, m.Source+" "+strings.Join(m.Options, ","))
		}
	}
	return found
}

func destinations(s *specs.Spec) []string {
	var all []string
	for _, m := range s.Mounts {
		all = append(all, m.Destination)
	}
	return all
}

func TestMountsAreOrderedByDepth(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) {
		c.Mounts = []Mount{
			{Source: "/1", Destination: "/a/b/c"}, {Source: "/2", Destination: "/a/b/"}, {Source: "/3", Destination: "/a"},
			{Source: "/4", Destination: "/b"},
		}
	})
	all := destinations(s)
	got := all[slices.Index(all, "/sys/fs/cgroup")+1:]
	want := list("/a", "/b", "/a/b/", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/a/b/c")
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMountReplacesDefaultAndPodMount(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) {
		c.Mounts = []Mount{
			{Source: "/my/resolv.conf", Destination: "/etc/resolv.conf", ReadOnly: true},
			{Source: "/my/shm", Destination: "/dev/shm/"},
			{Source: "/sys/fs/cgroup", Destination: "/sys/fs/cgroup"},
		}
	})
	for destination, want := range map[string]string{
		"/etc/resolv.conf": "/my/resolv.conf rbind,rprivate,ro",
		"/dev/shm/":        "/my/shm rbind,rprivate,rw",
		"/sys/fs/cgroup":   "/sys/fs/cgroup rbind,rprivate,rw",
	} {
		if got := mountsOn(s, destination); !slices.Equal(got, list(want)) {
			t.Errorf("%s: got %q, want %q", destination, got, want)
		}
	}
	if got := mountsOn(s, "/dev/shm"); got != nil {
		t.Errorf("/dev/shm: got %q", got)
	}
}

func TestMountOnDevReplacesAllBelow(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) { c.Mounts = []Mount{{Source: "/dev", Destination: "/dev"}} })
	var dev []string
	for _, d := range destinations(s) {
		if strings.HasPrefix(d, "/dev") {
			dev = append(dev, d)
		}
	}
	if !slices.Equal(dev, list("/dev", "/dev/shm")) {
		t.Errorf("got %q", dev)
	}
}

func TestMountPropagation(t *testing.T) {
	for name, tc := range map[string]struct {
		mounts       []Propagation
		root, option string
	}{
		"private": {[]Propagation{PropagationPrivate}, "", "rprivate"},
		"slave":   {[]Propagation{PropagationHostToContainer, PropagationPrivate}, "rslave", "rslave"},
		"shared":  {[]Propagation{PropagationBidirectional, PropagationHostToContainer}, "rshared", "rshared"},
		"widened": {[]Propagation{PropagationHostToContainer, PropagationBidirectional}, "rshared", "rslave"},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t, func(_ *Pod, c *Container) {
				c.Mounts = nil
				for i, p := range tc.mounts {
					c.Mounts = append(c.Mounts, Mount{Source: "/x", Destination: "/m" + string(rune('0'+i)), Propagation: p})
				}
			})
			if s.Linux.RootfsPropagation != tc.root {
				t.Errorf("root is %q, want %q", s.Linux.RootfsPropagation, tc.root)
			}
			if got := mountsOn(s, "/m0"); !slices.Equal(got, list("/x rbind,"+tc.option+",rw")) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestMountOptions(t *testing.T) {
	for want, m := range map[string]Mount{
		"/x rbind,rprivate,ro":              {ReadOnly: true},
		"/x rbind,rprivate,ro,rro":          {ReadOnly: true, RecursiveReadOnly: true},
		"/x rbind,rslave,ro":                {ReadOnly: true, Propagation: PropagationHostToContainer},
		"/x rbind,rprivate,rw,noexec,nodev": {Options: list("noexec", "nodev")},
		"/x rbind,rprivate,ro,rro,nosuid":   {ReadOnly: true, RecursiveReadOnly: true, Options: list("nosuid")},
	} {
		m.Source, m.Destination = "/x", "/m"
		s := build(t, func(_ *Pod, c *Container) { c.Mounts = []Mount{m} })
		if got := mountsOn(s, "/m"); !slices.Equal(got, list(want)) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestPodFiles(t *testing.T) {
	s := build(t, func(p *Pod, c *Container) {
		c.ReadOnlyRootFS, c.Mounts = true, nil
		p.HostnameFile, p.HostsFile = "", "/pod/hosts"
	})
	if got := mountsOn(s, "/etc/hostname"); got != nil {
		t.Errorf("/etc/hostname: got %q", got)
	}
	if got := mountsOn(s, "/etc/hosts"); !slices.Equal(got, list("/pod/hosts rbind,rprivate,ro")) {
		t.Errorf("/etc/hosts: got %q", got)
	}
	if got := mountsOn(s, "/dev/shm"); !slices.Equal(got, list(plainPod().ShmPath+" rbind,rprivate,rw")) {
		t.Errorf("/dev/shm: got %q", got)
	}
}

func TestCgroupMount(t *testing.T) {
	for name, tc := range map[string]struct{ unified, privileged, nsdelegate, writable bool }{
		"v1":            {},
		"v1 privileged": {privileged: true, writable: true},
		"v2":            {unified: true},
		"v2 privileged": {unified: true, privileged: true, nsdelegate: true, writable: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t, func(p *Pod, c *Container) {
				p.Privileged, c.Privileged = tc.privileged, tc.privileged
				c.UnifiedCgroup, c.CgroupMountOptions = tc.unified, list("nsdelegate")
			})
			for _, m := range s.Mounts {
				if m.Destination != "/sys/fs/cgroup" {
					continue
				}
				if slices.Contains(m.Options, "nsdelegate") != tc.nsdelegate {
					t.Errorf("options %q", m.Options)
				}
				if slices.Contains(m.Options, "rw") != tc.writable || slices.Contains(m.Options, "ro") == tc.writable {
					t.Errorf("options %q", m.Options)
				}
			}
		})
	}
}

func TestMountErrors(t *testing.T) {
	for _, tc := range []struct {
		field string
		mount Mount
	}{
		{"mounts.host_path", Mount{Source: "", Destination: "/a"}},
		{"mounts.host_path", Mount{Source: "a", Destination: "/a"}},
		{"mounts.container_path", Mount{Source: "/a", Destination: "a"}},
		{"mounts.container_path", Mount{Source: "/a", Destination: "/b/.."}},
		{"mounts.propagation", Mount{Source: "/a", Destination: "/b", Propagation: 3}},
		{"mounts.recursive_read_only", Mount{Source: "/a", Destination: "/b", RecursiveReadOnly: true}},
		{"mounts.recursive_read_only", Mount{Source: "/a", Destination: "/b", ReadOnly: true, RecursiveReadOnly: true, Propagation: PropagationHostToContainer}},
		{"mounts.mount_options", Mount{Source: "/a", Destination: "/b", Options: list("noexec", "rw")}},
	} {
		wantError(t, tc.field, func(_ *Pod, c *Container) { c.Mounts = []Mount{tc.mount} })
	}
}

// Only who has rights over a network namespace may make a sysfs for it.
func TestSysOfAUserNamespace(t *testing.T) {
	own := build(t, func(p *Pod, _ *Container) { p.UserNS = "/run/user" })
	if got := mountsOn(own, "/sys"); !slices.Equal(got, []string{"sysfs nosuid,noexec,nodev,ro"}) {
		t.Errorf("with a network of its own: %v", got)
	}
	hosts := build(t, func(p *Pod, _ *Container) { p.UserNS, p.NetNS, p.UTSNS = "/run/user", "", "" })
	if got := mountsOn(hosts, "/sys"); !slices.Equal(got, []string{"/sys rbind,rprivate,nosuid,noexec,nodev,ro,rro"}) {
		t.Errorf("on the host's network: %v", got)
	}
}
