package spec

import (
	"slices"
	"testing"
)

func TestCapabilities(t *testing.T) {
	all := knownCapabilities()
	without := func(set []string, names ...string) []string {
		return slices.DeleteFunc(slices.Clone(set), func(n string) bool { return slices.Contains(names, n) })
	}
	for name, tc := range map[string]struct {
		add, drop, held []string
		want            []string
	}{
		"default":            {nil, nil, nil, defaultCapabilities},
		"add":                {list("SYS_ADMIN", "CAP_NET_ADMIN", "net_raw", "cap_chown"), nil, nil, append(list("CAP_SYS_ADMIN", "CAP_NET_ADMIN"), defaultCapabilities...)},
		"drop":               {nil, list("MKNOD", "CAP_NET_RAW", "SYS_ADMIN"), nil, without(defaultCapabilities, "CAP_MKNOD", "CAP_NET_RAW")},
		"drop wins":          {list("SYS_ADMIN"), list("SYS_ADMIN"), nil, defaultCapabilities},
		"add all":            {list("all"), nil, nil, all},
		"all but one":        {list("ALL"), list("SYS_ADMIN"), nil, without(all, "CAP_SYS_ADMIN")},
		"drop all":           {nil, list("ALL"), nil, nil},
		"only one":           {list("KILL"), list("ALL"), nil, list("CAP_KILL")},
		"both all":           {list("ALL"), list("ALL"), nil, nil},
		"not held":           {list("SYS_ADMIN", "SYS_RESOURCE"), list("ALL"), list("CAP_SYS_ADMIN", "CAP_KILL"), list("CAP_SYS_ADMIN")},
		"all that are held":  {list("ALL"), nil, list("CAP_SYS_ADMIN", "CAP_KILL"), list("CAP_KILL", "CAP_SYS_ADMIN")},
		"default, none held": {nil, nil, []string{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t, func(_ *Pod, c *Container) {
				c.Capabilities, c.HeldCapabilities = Capabilities{Add: tc.add, Drop: tc.drop}, tc.held
			})
			checkCapabilities(t, s.Process.Capabilities.Bounding, tc.want)
			checkCapabilities(t, s.Process.Capabilities.Permitted, tc.want)
			checkCapabilities(t, s.Process.Capabilities.Effective, tc.want)
			if s.Process.Capabilities.Inheritable != nil || s.Process.Capabilities.Ambient != nil {
				t.Errorf("inheritable %q, ambient %q", s.Process.Capabilities.Inheritable, s.Process.Capabilities.Ambient)
			}
		})
	}
	wantError(t, "capabilities.add_capabilities", func(_ *Pod, c *Container) { c.Capabilities.Add = list("FOO") })
	wantError(t, "capabilities.drop_capabilities", func(_ *Pod, c *Container) { c.Capabilities.Drop = list("CAP_ALL") })
}

func TestCapabilitiesErrorText(t *testing.T) {
	_, err := Build(plainPod(), Container{Command: list("a"), Capabilities: Capabilities{Add: list("FOO")}})
	if want := `capabilities.add_capabilities: unknown capability "FOO"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestCapabilitiesOfPrivileged(t *testing.T) {
	p, c := privileged()
	c.Capabilities = Capabilities{Drop: list("ALL")} // has no effect, as in every runtime
	checkCapabilities(t, mustBuild(t)(p, c).Process.Capabilities.Bounding, knownCapabilities())
	c.HeldCapabilities = list("CAP_KILL")
	checkCapabilities(t, mustBuild(t)(p, c).Process.Capabilities.Bounding, list("CAP_KILL"))
}

// checkCapabilities compares sets.
func checkCapabilities(t *testing.T, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Ambient ones are in all sets; what is dropped, or not this runtime's to give, is in none.
func TestAmbientCapabilities(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) {
		c.Capabilities = Capabilities{Ambient: list("net_admin", "CAP_CHOWN", "SYS_TIME", "SYS_BOOT"), Drop: list("CHOWN", "SYS_TIME")}
		c.HeldCapabilities = list("CAP_NET_ADMIN", "CAP_CHOWN", "CAP_SYS_TIME", "CAP_KILL")
	})
	caps := s.Process.Capabilities
	for name, got := range map[string][]string{"ambient": caps.Ambient, "inheritable": caps.Inheritable} {
		if !slices.Equal(got, list("CAP_NET_ADMIN")) {
			t.Errorf("%s: got %q", name, got)
		}
	}
	for name, got := range map[string][]string{"bounding": caps.Bounding, "effective": caps.Effective, "permitted": caps.Permitted} {
		if !slices.Equal(got, list("CAP_KILL", "CAP_NET_ADMIN")) {
			t.Errorf("%s: got %q", name, got)
		}
	}
	wantError(t, "capabilities.add_ambient_capabilities", func(_ *Pod, c *Container) { c.Capabilities.Ambient = list("FLY") })
}
