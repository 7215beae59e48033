package handler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containers/common/pkg/hooks"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// addHooks adds the handler's hooks, and those of its directories that are meant for such a container, after those that the
// specification has: CDI devices bring some.
func (u Usable) addHooks(ctx context.Context, s *specs.Spec, annotations map[string]string) error {
	var own specs.Hooks
	if s.Hooks != nil {
		own = *s.Hooks
	}
	s.Hooks = &specs.Hooks{
		Prestart:        slices.Concat(own.Prestart, u.Hooks.Prestart), //nolint:staticcheck // deprecated, and what most hooks still are
		CreateRuntime:   slices.Concat(own.CreateRuntime, u.Hooks.CreateRuntime),
		CreateContainer: slices.Concat(own.CreateContainer, u.Hooks.CreateContainer),
		StartContainer:  slices.Concat(own.StartContainer, u.Hooks.StartContainer),
		Poststart:       slices.Concat(own.Poststart, u.Hooks.Poststart),
		Poststop:        slices.Concat(own.Poststop, u.Hooks.Poststop),
	}
	for _, dir := range u.HooksDirs {
		found, err := hooks.New(ctx, []string{dir}, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = found.Hooks(s, annotations, slices.ContainsFunc(s.Mounts, isBind))
		}
		if err != nil {
			return fmt.Errorf("OCI hooks of %s, of runtime handler %s: %w", dir, u.Name, err)
		}
	}
	return nil
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}
