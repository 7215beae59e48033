package spec

import (
	"slices"
	"testing"
)

// The table of "Define a Command and Arguments for a Container" in Kubernetes' documentation.
func TestCommandLine(t *testing.T) {
	for name, tc := range map[string]struct{ entrypoint, cmd, command, args, want []string }{
		"image only":         {list("/ep-1"), list("foo"), nil, nil, list("/ep-1", "foo")},
		"command":            {list("/ep-1"), list("foo"), list("/ep-2"), nil, list("/ep-2")},
		"args":               {list("/ep-1"), list("foo"), nil, list("zoo"), list("/ep-1", "zoo")},
		"both":               {list("/ep-1"), list("foo"), list("/ep-2"), list("zoo"), list("/ep-2", "zoo")},
		"cmd only":           {nil, list("foo"), nil, nil, list("foo")},
		"args, no image":     {nil, nil, nil, list("zoo"), list("zoo")},
		"emptied entrypoint": {list(""), list("foo"), nil, nil, list("foo")},
		"empty lists":        {list("/ep-1"), list("foo"), list(), list(), list("/ep-1", "foo")},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t, func(_ *Pod, c *Container) {
				c.Image.Entrypoint, c.Image.Cmd, c.Command, c.Args = tc.entrypoint, tc.cmd, tc.command, tc.args
			})
			if !slices.Equal(s.Process.Args, tc.want) {
				t.Errorf("got %q, want %q", s.Process.Args, tc.want)
			}
		})
	}
	wantError(t, "command", func(_ *Pod, c *Container) { c.Image.Entrypoint, c.Image.Cmd = list(""), nil })
	wantError(t, "command", func(_ *Pod, c *Container) { c.Command = list("sh", "a\x00b") })
	wantError(t, "args", func(_ *Pod, c *Container) { c.Args = list("a\x00b") })
	wantError(t, "image", func(_ *Pod, c *Container) { c.Image.Entrypoint = list("a\x00b") })
}

func list(s ...string) []string { return s }

func TestWorkingDir(t *testing.T) {
	for _, tc := range []struct{ image, config, want string }{
		{"", "", "/"}, {"/srv", "", "/srv"}, {"/srv", "/tmp", "/tmp"}, {"srv", "", "/srv"}, {"../srv", "", "/srv"},
	} {
		s := build(t, func(_ *Pod, c *Container) { c.Image.WorkingDir, c.WorkingDir = tc.image, tc.config })
		if s.Process.Cwd != tc.want {
			t.Errorf("%+v: got %q", tc, s.Process.Cwd)
		}
	}
	wantError(t, "working_dir", func(_ *Pod, c *Container) { c.WorkingDir = "tmp" })
	wantError(t, "working_dir", func(_ *Pod, c *Container) { c.WorkingDir = "/tmp\x00" })
	wantError(t, "image", func(_ *Pod, c *Container) { c.Image.WorkingDir = "/tmp\x00" })
}

func TestTerminal(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) { c.TTY = true })
	if !s.Process.Terminal || !slices.Contains(s.Process.Env, "TERM=xterm") {
		t.Errorf("terminal %v, environment %q", s.Process.Terminal, s.Process.Env)
	}
}
