// Package change applies instructions of a Dockerfile's form to the configuration of an image, for who makes an image of a
// container.
package change

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/mattn/go-shellwords"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrInvalid says that an instruction is not known, or not of its form.
var ErrInvalid = errors.New("invalid instruction")

// instructions are what can be changed, by name.
var instructions = map[string]func(c *ocispec.ImageConfig, args string) error{
	"CMD":        func(c *ocispec.ImageConfig, args string) (err error) { c.Cmd, err = command(args); return err },
	"ENTRYPOINT": func(c *ocispec.ImageConfig, args string) (err error) { c.Entrypoint, err = command(args); return err },
	"ENV":        env,
	"EXPOSE":     expose,
	"LABEL":      label,
	"STOPSIGNAL": func(c *ocispec.ImageConfig, args string) (err error) { c.StopSignal, err = one(args); return err },
	"USER":       func(c *ocispec.ImageConfig, args string) (err error) { c.User, err = one(args); return err },
	"VOLUME":     volume,
	"WORKDIR":    workdir,
}

// Names are the instructions that Apply knows.
func Names() []string { return slices.Sorted(maps.Keys(instructions)) }

// Apply changes a configuration by instructions such as `CMD ["sleep", "1000"]` or `ENV A=1 B="two words"`
// (https://docs.docker.com/reference/dockerfile). What c shares with others is not changed. ErrInvalid.
func Apply(c *ocispec.ImageConfig, changes []string) error {
	c.Env = slices.Clone(c.Env)
	c.Labels, c.Volumes, c.ExposedPorts = maps.Clone(c.Labels), maps.Clone(c.Volumes), maps.Clone(c.ExposedPorts)
	for _, line := range changes {
		name, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		apply, ok := instructions[strings.ToUpper(name)]
		if !ok {
			return fmt.Errorf("%w: %q is not one of %s", ErrInvalid, name, strings.Join(Names(), ", "))
		}
		if err := apply(c, strings.TrimSpace(args)); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalid, line, err)
		}
	}
	return nil
}

// command reads a command line: a JSON array, or a line for a shell.
func command(args string) ([]string, error) {
	if strings.HasPrefix(args, "[") {
		var list []string
		if err := json.Unmarshal([]byte(args), &list); err != nil {
			return nil, fmt.Errorf("want an array of strings: %w", err)
		}
		return list, nil
	}
	if args == "" {
		return nil, errors.New("no command")
	}
	return []string{"/bin/sh", "-c", args}, nil
}

func words(args string) ([]string, error) {
	list, err := shellwords.Parse(args)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("no value")
	}
	return list, nil
}

func one(args string) (string, error) {
	list, err := words(args)
	if err == nil && len(list) > 1 {
		err = errors.New("more than one value")
	}
	if err != nil {
		return "", err
	}
	return list[0], nil
}

// pairs reads `A=1 B="two words"`.
func pairs(args string) ([][2]string, error) {
	list, err := words(args)
	if err != nil {
		return nil, err
	}
	out := make([][2]string, 0, len(list))
	for _, word := range list {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" || strings.ContainsRune(word, 0) {
			return nil, fmt.Errorf("%q is not of the form name=value", word)
		}
		out = append(out, [2]string{key, value})
	}
	return out, nil
}

func env(c *ocispec.ImageConfig, args string) error {
	list, err := pairs(args)
	for _, p := range list {
		c.Env = slices.DeleteFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, p[0]+"=") })
		c.Env = append(c.Env, p[0]+"="+p[1])
	}
	return err
}

func label(c *ocispec.ImageConfig, args string) error {
	list, err := pairs(args)
	for _, p := range list {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[p[0]] = p[1]
	}
	return err
}

func expose(c *ocispec.ImageConfig, args string) error {
	list, err := words(args)
	for _, port := range list {
		number, protocol, _ := strings.Cut(port, "/")
		if strings.Trim(number, "0123456789") != "" || number == "" || !slices.Contains([]string{"", "tcp", "udp", "sctp"}, protocol) {
			return fmt.Errorf("%q is not a port such as 80 or 53/udp", port)
		}
		if protocol == "" {
			port += "/tcp"
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		c.ExposedPorts[port] = struct{}{}
	}
	return err
}

func volume(c *ocispec.ImageConfig, args string) error {
	var list []string
	var err error
	if strings.HasPrefix(args, "[") {
		err = json.Unmarshal([]byte(args), &list)
	} else {
		list, err = words(args)
	}
	for _, dir := range list {
		if !path.IsAbs(dir) {
			return fmt.Errorf("%q is not an absolute path", dir)
		}
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[dir] = struct{}{}
	}
	return err
}

// workdir is relative to the one before.
func workdir(c *ocispec.ImageConfig, args string) error {
	dir, err := one(args)
	if err == nil && !path.IsAbs(dir) {
		dir = path.Join("/", c.WorkingDir, dir)
	}
	if err == nil {
		c.WorkingDir = dir
	}
	return err
}
