package sandbox

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/want"
)

// ExecProcess is the process that a command in a running container is to be, with a terminal or without; the caller executes it
// by crimonitor. ErrState: the container does not run.
func (s *Service) ExecProcess(id string, command []string, terminal bool) (containerID string, p *specs.Process, err error) {
	if err := want.CheckCommand(command); err != nil {
		return "", nil, err
	}
	st, err := s.running(id)
	if err != nil {
		return "", nil, err
	}
	if p, err = s.bundles.Process(st.ID); err != nil {
		return "", nil, err
	}
	p.Args, p.Terminal = command, terminal
	if terminal && !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return st.ID, p, nil
}

// Attachable finds a running container for somebody who wants to attach. ErrState: it does not run.
func (s *Service) Attachable(id string) (ContainerStatus, error) { return s.running(id) }

// running finds a container that runs.
func (s *Service) running(id string) (ContainerStatus, error) {
	st, err := s.Container(id)
	if err != nil {
		return st, err
	}
	if st.Phase != ContainerRunning {
		return st, fmt.Errorf("container %s is %s, not running: %w", id, st.Phase, ErrState)
	}
	return st, nil
}

// PodNetwork tells the path of a ready pod's network namespace, "" if it is the host's. ErrState: it is not ready.
func (s *Service) PodNetwork(id string) (path string, err error) {
	st, err := s.Pod(id)
	if err != nil {
		return "", err
	}
	if !st.Ready() {
		return "", fmt.Errorf("pod %s is not ready: %w", id, ErrState)
	}
	if st.Config.Namespaces.Network != want.NamespacePod {
		return "", nil
	}
	if path = s.spaces.NetNS(st.ID); path == "" { // which would be the host's
		return "", fmt.Errorf("pod %s has lost its network namespace: %w", id, ErrState)
	}
	return path, nil
}
