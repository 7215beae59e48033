package spec

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultPath is the PATH of a container whose image has none, the same in every runtime.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// setEnv sets the environment: the runtime's variables, over them the image's, over them the container's.
func setEnv(s *specs.Spec, p Pod, c Container) error {
	env := &environment{place: map[string]int{}}
	env.set("PATH=" + defaultPath)
	if c.TTY {
		env.set("TERM=xterm")
	}
	if p.Hostname != "" {
		env.set("HOSTNAME=" + p.Hostname)
	}
	for _, e := range c.Image.Env {
		if err := env.change("image: config.Env", e); err != nil {
			return err
		}
	}
	for _, e := range c.Env {
		if !strings.Contains(e, "=") {
			return Invalidf("envs", "%q is not of the form KEY=value", e)
		}
		if err := env.change("envs", e); err != nil {
			return err
		}
	}
	// OCI runtimes fill in a missing or empty HOME too, but each by its own reading of the image's passwd.
	if i, ok := env.place["HOME"]; !ok || env.entries[i] == "HOME=" {
		home := c.User.Home
		if home == "" {
			home = "/"
		}
		env.set("HOME=" + home)
	}
	s.Process.Env = env.list()
	return nil
}

// environment is a list of "KEY=value", each KEY once, in the order in which they were first set.
type environment struct {
	entries []string // "" for one that was taken away
	place   map[string]int
}

func (env *environment) list() []string {
	out := make([]string, 0, len(env.place))
	for _, e := range env.entries {
		if e != "" {
			out = append(out, e)
		}
	}
	return out
}

func (env *environment) set(entry string) {
	key, _, _ := strings.Cut(entry, "=")
	if i, ok := env.place[key]; ok {
		env.entries[i] = entry
		return
	}
	env.place[key] = len(env.entries)
	env.entries = append(env.entries, entry)
}

// change sets an entry; one without a "=" takes the variable away, as image builders use it.
func (env *environment) change(field, entry string) error {
	key, _, found := strings.Cut(entry, "=")
	switch {
	case key == "":
		return Invalidf(field, "%q has no name", entry)
	case strings.ContainsRune(entry, 0):
		return Invalidf(field, "variable %q contains a NUL byte", key)
	case found:
		env.set(entry)
	default:
		if i, ok := env.place[key]; ok {
			env.entries[i] = ""
			delete(env.place, key)
		}
	}
	return nil
}
