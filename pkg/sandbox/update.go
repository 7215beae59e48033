package sandbox

import (
	"context"
	"fmt"

	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/spec"
)

// UpdatePod records what the pod's containers may take in all, and what the pod takes beside them. The kubelet, which owns
// the pod's cgroup, has changed its limits already (api.proto, UpdatePodSandboxResources). spec.ErrInvalid: no cgroup can have such limits.
func (s *Service) UpdatePod(ctx context.Context, id string, overhead, resources *spec.Resources) error {
	p, err := s.ledger.Pod(id)
	if err != nil {
		return err
	}
	if err := host.CheckPod(resources, overhead); err != nil {
		return fmt.Errorf("update pod %s: %w", id, err)
	}
	if err := p.Acquire(ctx); err != nil {
		return err
	}
	defer p.Release()
	if st := s.ledger.PodStatus(p); !st.Ready() {
		return fmt.Errorf("update pod %s: it is %s: %w", id, st.Phase, ErrState)
	}
	if err := s.plugins.UpdatePod(ctx, s.ledger.PodStatus(p), overhead, resources); err != nil {
		return fmt.Errorf("update pod %s: %w", id, err)
	}
	st := s.ledger.UpdatePod(p, func(st *PodStatus) {
		if overhead != nil {
			st.Config.Overhead = *overhead
		}
		if resources != nil {
			st.Config.Resources = *resources
		}
	})
	if err := s.ledger.SavePod(ctx, p); err != nil {
		return err
	}
	return s.plugins.PodEvent(ctx, plugin.PodUpdated, st)
}
