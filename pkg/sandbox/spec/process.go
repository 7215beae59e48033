package spec

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// setProcess sets what is run, where, and whether on a terminal.
func setProcess(s *specs.Spec, _ Pod, c Container) error {
	nul := func(arg string) bool { return strings.Contains(arg, "\x00") }
	for field, values := range map[string][]string{"command": c.Command, "args": c.Args, "working_dir": {c.WorkingDir}} {
		if i := slices.IndexFunc(values, nul); i >= 0 {
			return Invalidf(field, "%q has a NUL byte", values[i])
		}
	}
	args := commandLine(c)
	if slices.ContainsFunc(args, nul) || nul(c.Image.WorkingDir) {
		return Invalidf("image", "its command %q or its directory %q has a NUL byte", args, c.Image.WorkingDir)
	}
	if len(args) == 0 {
		return Invalidf("command", "no command specified, neither here nor in the image")
	}
	s.Process.Args = args
	s.Process.Terminal = c.TTY
	switch {
	case c.WorkingDir != "" && !path.IsAbs(c.WorkingDir):
		return Invalidf("working_dir", "%q is not absolute", c.WorkingDir)
	case c.WorkingDir != "":
		s.Process.Cwd = c.WorkingDir
	default:
		// Build tools have written relative ones; they always meant below the root.
		s.Process.Cwd = path.Join("/", c.Image.WorkingDir)
	}
	return nil
}

// commandLine is Kubernetes' table: a command replaces the image's entrypoint and its command, args alone replace the
// image's command.
func commandLine(c Container) []string {
	if len(c.Command) > 0 {
		return slices.Concat(c.Command, c.Args)
	}
	args := c.Args
	if len(args) == 0 {
		args = c.Image.Cmd
	}
	entrypoint := c.Image.Entrypoint
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil // how a Dockerfile takes away the entrypoint of its base image
	}
	return slices.Concat(entrypoint, args)
}
