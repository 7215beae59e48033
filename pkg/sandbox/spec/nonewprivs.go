package spec

import "github.com/opencontainers/runtime-spec/specs-go"

// setNoNewPrivs keeps set-user-ID programs from working, when asked: allowPrivilegeEscalation false in Kubernetes.
func setNoNewPrivs(s *specs.Spec, _ Pod, c Container) error {
	s.Process.NoNewPrivileges = c.NoNewPrivs
	return nil
}
