package spec

import "github.com/opencontainers/runtime-spec/specs-go"

func setAppArmor(s *specs.Spec, _ Pod, c Container) error {
	s.Process.ApparmorProfile = c.AppArmorProfile
	return nil
}
