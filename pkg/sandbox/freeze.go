package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/ledger"
)

// freezeLimit is how long the processes of a container may take to stop.
const freezeLimit = 10 * time.Second

// Freeze stops the processes of a running container, so that its files do not change, until thaw is called, which the caller
// must do. One that does not run has nothing to stop. That it is frozen is recorded first: a start of the daemon thaws it,
// and so does whoever stops it. ErrState: it is frozen already.
func (s *Service) Freeze(ctx context.Context, id string) (thaw func(context.Context) error, err error) {
	c, err := s.ledger.Container(id)
	if err != nil {
		return nil, err
	}
	if err := c.Acquire(ctx); err != nil {
		return nil, err
	}
	defer c.Release()
	st := s.ledger.ContainerStatus(c)
	switch {
	case st.Phase != ContainerRunning:
		return func(context.Context) error { return nil }, nil
	case st.Frozen:
		return nil, fmt.Errorf("container %s is frozen already: %w", id, ErrState)
	}
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.Frozen = true })
	thaw = func(ctx context.Context) error { return s.thaw(ctx, c) }
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	err = s.ledger.SaveContainer(ctx, c)
	if err == nil {
		err = cgroup.Freeze(ctx, st.CgroupPath)
	}
	if err == nil && !s.ledger.ContainerStatus(c).Frozen {
		err = errors.Join(fmt.Errorf("container %s was stopped meanwhile: %w", id, ErrState), cgroup.Thaw(st.CgroupPath))
	}
	if err != nil {
		return nil, errors.Join(err, thaw(context.WithoutCancel(ctx)))
	}
	return thaw, nil
}

// thaw lets a frozen container go on. It is idempotent.
func (s *Service) thaw(ctx context.Context, c *ledger.Container) error {
	st := s.ledger.ContainerStatus(c)
	if !st.Frozen {
		return nil
	}
	if err := cgroup.Thaw(st.CgroupPath); err != nil {
		return err
	}
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.Frozen = false })
	return s.ledger.SaveContainer(ctx, c)
}

// thawAll lets the containers go on that the last daemon has left frozen.
func (s *Service) thawAll(ctx context.Context) {
	for _, st := range s.ledger.Containers() {
		c, err := s.ledger.Container(st.ID)
		if err != nil || !st.Frozen {
			continue
		}
		if err := s.thaw(ctx, c); err != nil {
			logrus.WithError(err).WithField("container", st.ID).Error("cannot thaw a container")
		}
	}
}
