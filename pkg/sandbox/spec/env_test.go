package spec

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEnv(t *testing.T) {
	for name, tc := range map[string]struct {
		image, config []string
		home          string
		want          []string
	}{
		"defaults":          {nil, nil, "", list("PATH="+defaultPath, "HOSTNAME=web-0", "HOME=/")},
		"home of the user":  {nil, nil, "/home/app", list("PATH="+defaultPath, "HOSTNAME=web-0", "HOME=/home/app")},
		"home of the image": {list("HOME=/x"), nil, "/home/app", list("PATH="+defaultPath, "HOSTNAME=web-0", "HOME=/x")},
		"empty home":        {list("HOME="), nil, "/home/app", list("PATH="+defaultPath, "HOSTNAME=web-0", "HOME=/home/app")},
		"image wins":        {list("PATH=/a", "HOSTNAME=b"), nil, "", list("PATH=/a", "HOSTNAME=b", "HOME=/")},
		"config wins":       {list("A=1", "B=2"), list("A=3"), "", list("PATH="+defaultPath, "HOSTNAME=web-0", "A=3", "B=2", "HOME=/")},
		"later wins":        {nil, list("A=1", "A=2", "A="), "", list("PATH="+defaultPath, "HOSTNAME=web-0", "A=", "HOME=/")},
		"equals in value":   {nil, list("A=b=c"), "", list("PATH="+defaultPath, "HOSTNAME=web-0", "A=b=c", "HOME=/")},
		"image unsets":      {list("A=1", "A", "HOSTNAME", "NEVER"), nil, "", list("PATH="+defaultPath, "HOME=/")},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t, func(_ *Pod, c *Container) { c.Image.Env, c.Env, c.User.Home = tc.image, tc.config, tc.home })
			if !slices.Equal(s.Process.Env, tc.want) {
				t.Errorf("got  %q\nwant %q", s.Process.Env, tc.want)
			}
		})
	}
	for _, bad := range []string{"", "=value", "KEY", "A=\x00"} {
		wantError(t, "envs", func(_ *Pod, c *Container) { c.Env = list(bad) })
	}
	wantError(t, "image: config.Env", func(_ *Pod, c *Container) { c.Image.Env = list("=value") })
}

func TestEnvWithoutHostname(t *testing.T) {
	s := build(t, func(p *Pod, _ *Container) { p.Hostname = "" })
	if slices.ContainsFunc(s.Process.Env, func(e string) bool { return strings.HasPrefix(e, "HOSTNAME=") }) {
		t.Errorf("got %q", s.Process.Env)
	}
}

// The time for many variables grows with their number, not with its square: 100,000 took half a minute.
func TestEnvIsLinear(t *testing.T) {
	many := make([]string, 100_000)
	for i := range many {
		many[i] = fmt.Sprintf("KEY_%d=%d", i, i)
	}
	start := time.Now()
	s := build(t, func(_ *Pod, c *Container) { c.Env = slices.Concat(many, many) })
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	if n := len(s.Process.Env); n < len(many) || n > len(many)+10 {
		t.Errorf("%d variables", n)
	}
}

func TestEnvSetAgainAfterRemoval(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) { c.Image.Env, c.Env = list("A=1", "B=2", "A"), list("A=3") })
	if got := strings.Join(s.Process.Env, " "); !strings.Contains(got, "B=2 A=3") || strings.Contains(got, "A=1") {
		t.Errorf("got %q", got)
	}
}
