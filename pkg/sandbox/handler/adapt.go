package handler

import (
	"maps"
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Adapt makes a specification the handler's: its version, and the annotations that it passes on or adds.
func (u Usable) Adapt(s *specs.Spec, podAnnotations map[string]string) {
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
}
