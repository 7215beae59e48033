package spec

import "github.com/opencontainers/runtime-spec/specs-go"

func setRootFS(s *specs.Spec, _ Pod, c Container) error {
	s.Root.Path = c.RootFS
	s.Root.Readonly = c.ReadOnlyRootFS
	return nil
}
