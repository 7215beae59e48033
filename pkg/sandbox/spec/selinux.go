package spec

import "github.com/opencontainers/runtime-spec/specs-go"

// setSELinux labels processes and files. Without a label of its own a privileged process gets what the policy says for programs that
// crimonitor executes, which is not confined; its files are labelled as others, for the other containers of the pod.
func setSELinux(s *specs.Spec, _ Pod, c Container) error {
	if !c.Privileged {
		s.Process.SelinuxLabel = c.ProcessLabel
	}
	s.Linux.MountLabel = c.MountLabel
	return nil
}
