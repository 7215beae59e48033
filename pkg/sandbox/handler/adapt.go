package handler

import (
	"context"
	"maps"
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Adapt makes a specification the handler's: its version, the annotations that it passes on or adds, defaults and hooks.
func (u Usable) Adapt(ctx context.Context, s *specs.Spec, podAnnotations map[string]string) error {
	s.Version = u.SpecVersion
	all := maps.Clone(u.Annotations)
	if all == nil {
		all = map[string]string{}
	}
	for name, value := range podAnnotations {
		if slices.ContainsFunc(u.PodAnnotations, func(p string) bool { ok, _ := path.Match(p, name); return ok }) {
			all[name] = value
		}
	}
	maps.Copy(all, s.Annotations)
	s.Annotations = all
	u.addDefaults(s)
	return u.addHooks(ctx, s, all)
}
