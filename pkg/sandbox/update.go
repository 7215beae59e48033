package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/cgroup/limit"
	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/spec"
)

// LimitContainer changes the limits of a created or running container; what change leaves unset stays, and so does the OOM
// score. All of it happens or nothing, whatever this process lives through: the plan is recorded before the first write, and
// a start of the daemon takes back what no end was recorded of. ErrState; limit.ErrInUse: more memory is in use than the new
// limit; limit.ErrRefused, spec.ErrInvalid: what the kernel or the CRI does not allow.
func (s *Service) LimitContainer(ctx context.Context, id string, change spec.Resources) error {
	c, err := s.ledger.Container(id)
	if err != nil {
		return err
	}
	if err := c.Acquire(ctx); err != nil {
		return err
	}
	defer c.Release()
	st := s.ledger.ContainerStatus(c)
	if st.Phase != ContainerCreated && st.Phase != ContainerRunning {
		return fmt.Errorf("update container %s: it is %s: %w", id, st.Phase, ErrState)
	}
	merged := st.Config.Resources.With(change)
	if change.MemorySwap != 0 { // a limit of both together means something only beside the one of memory
		change.MemoryLimit = merged.MemoryLimit
	}
	limits, err := host.Limits(change)
	if err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	plan, err := limit.For(st.CgroupPath, limits)
	if err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	if err := s.changeLimits(ctx, c, plan, limits, merged); err != nil {
		if p := s.ledger.ContainerStatus(c).Phase; p.Terminal() {
			return fmt.Errorf("update container %s: it is %s: %w: %w", id, p, ErrState, err)
		}
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

// changeLimits needs the container's slot. limits are those of the plan, merged all that the container has with them.
func (s *Service) changeLimits(ctx context.Context, c *ledger.Container, plan limit.Plan, limits *specs.LinuxResources, merged spec.Resources) error {
	st := s.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.Updating = plan })
	old := st.Config.Resources
	err := s.ledger.SaveContainer(ctx, c) // the intent
	applied := false
	if err == nil {
		err = plan.Apply()
		applied = err == nil
	}
	if err == nil {
		err = driver.Sync(st.CgroupPath, limits)
	}
	if err == nil {
		s.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.Updating, st.Config.Resources = nil, merged })
		err = s.ledger.SaveContainer(ctx, c)
	}
	if err == nil {
		return nil
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if applied {
		err = errors.Join(err, plan.Undo(), syncLimits(st.CgroupPath, old))
	}
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.Updating, st.Config.Resources = nil, old })
	return errors.Join(err, s.ledger.SaveContainer(ctx, c))
}

// syncLimits tells the cgroup's driver of all limits of a container.
func syncLimits(path string, r spec.Resources) error {
	limits, err := host.Limits(r)
	if err != nil {
		return err
	}
	return driver.Sync(path, limits)
}

// undoUpdates takes back the changes of limits that the last daemon has not brought to an end.
func (s *Service) undoUpdates(ctx context.Context) {
	for _, st := range s.ledger.Containers() {
		c, err := s.ledger.Container(st.ID)
		if err != nil || st.Updating == nil {
			continue
		}
		err = errors.Join(st.Updating.Undo(), syncLimits(st.CgroupPath, st.Config.Resources))
		s.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.Updating = nil })
		if err = errors.Join(err, s.ledger.SaveContainer(ctx, c)); err != nil {
			logrus.WithError(err).WithField("container", st.ID).Error("cannot take back an update that was cut off")
		}
	}
}

// UpdatePod records what the pod's containers may take in all, and what the pod takes beside them. The kubelet, which owns
// the pod's cgroup, has changed its limits already (api.proto, UpdatePodSandboxResources).
func (s *Service) UpdatePod(ctx context.Context, id string, overhead, resources *spec.Resources) error {
	p, err := s.ledger.Pod(id)
	if err != nil {
		return err
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
