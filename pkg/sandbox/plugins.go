package sandbox

import (
	"context"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/freezer"
	"criserver/pkg/sandbox/limiter"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/spec"
)

// adjust has plugins change the specification of a container. Limits and cgroup become what the container is known by: later
// updates and its end count on them.
func (s *Service) adjust(ctx context.Context, st ContainerStatus, out *specs.Spec) error {
	group := out.Linux.CgroupsPath
	limits, err := s.plugins.CreateContainer(ctx, st, out)
	if err != nil {
		return err
	}
	c, err := s.ledger.Container(st.ID)
	if err != nil {
		return err
	}
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) {
		st.Config.Resources = limits
		if out.Linux.CgroupsPath != group {
			st.CgroupPath = out.Linux.CgroupsPath
		}
	})
	return nil
}

// UpdateContainer changes the limits of a container as LimitContainer does, after plugins have had their say.
func (s *Service) UpdateContainer(ctx context.Context, id string, change spec.Resources) error {
	st, err := s.Container(id)
	if err != nil {
		return err
	}
	if st.Phase != ContainerCreated && st.Phase != ContainerRunning {
		return fmt.Errorf("update container %s: it is %s: %w", id, st.Phase, ErrState)
	}
	if change, err = s.plugins.UpdateContainer(ctx, st, change); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	if err := s.LimitContainer(ctx, st.ID, change); err != nil {
		return err
	}
	if now, err := s.Container(st.ID); err == nil {
		st = now
	}
	return s.plugins.ContainerEvent(ctx, plugin.ContainerUpdated, st)
}

func (s *Service) limiter() limiter.Limiter {
	return limiter.Limiter{Ledger: s.ledger, Scores: s.bundles}
}

func (s *Service) freezer() freezer.Freezer { return freezer.Freezer{Ledger: s.ledger} }

// Freeze stops the processes of a container, see freezer.Freezer.
func (s *Service) Freeze(ctx context.Context, id string) (thaw func(context.Context) error, err error) {
	return s.freezer().Freeze(ctx, id)
}

// LimitContainer changes the limits of a container, and asks no plugin, see limiter.Limiter.
func (s *Service) LimitContainer(ctx context.Context, id string, change spec.Resources) error {
	return s.limiter().Change(ctx, id, change)
}

// ContainerSpec reads the specification that a container was made by.
func (s *Service) ContainerSpec(id string) (*specs.Spec, error) { return s.bundles.Spec(id) }

// PodNamespaces are the namespaces of a pod that are there.
func (s *Service) PodNamespaces(id string) []specs.LinuxNamespace { return s.spaces.Namespaces(id) }
