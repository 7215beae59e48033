// Package freezer stops the processes of containers for a while, in one transaction with their records.
package freezer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/ledger"
)

// limit is how long the processes of a container may take to stop.
const limit = 10 * time.Second

// Freezer freezes the containers in a ledger.
type Freezer struct {
	Ledger *ledger.Ledger
}

// Freeze stops the processes of a running container, so that its files do not change, until thaw is called, which the caller
// must do. One that does not run has nothing to stop. That it is frozen is recorded first: a start of the daemon thaws it,
// and so does whoever stops it. ErrState: it is frozen already.
func (f Freezer) Freeze(ctx context.Context, id string) (thaw func(context.Context) error, err error) {
	c, err := f.Ledger.Container(id)
	if err != nil {
		return nil, err
	}
	if err := c.Acquire(ctx); err != nil {
		return nil, err
	}
	defer c.Release()
	st := f.Ledger.ContainerStatus(c)
	switch {
	case st.Phase != ledger.ContainerRunning:
		return func(context.Context) error { return nil }, nil
	case st.Frozen:
		return nil, fmt.Errorf("container %s is frozen already: %w", id, ledger.ErrState)
	}
	f.Ledger.UpdateContainer(c, func(st *ledger.ContainerStatus) { st.Frozen = true })
	thaw = func(ctx context.Context) error { return f.Thaw(ctx, c) }
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = f.Ledger.SaveContainer(ctx, c)
	if err == nil {
		err = cgroup.Freeze(ctx, st.CgroupPath)
	}
	if err == nil && !f.Ledger.ContainerStatus(c).Frozen {
		err = errors.Join(fmt.Errorf("container %s was stopped meanwhile: %w", id, ledger.ErrState), cgroup.Thaw(st.CgroupPath))
	}
	if err != nil {
		return nil, errors.Join(err, thaw(context.WithoutCancel(ctx)))
	}
	return thaw, nil
}

// Thaw lets a frozen container go on. It is idempotent.
func (f Freezer) Thaw(ctx context.Context, c *ledger.Container) error {
	st := f.Ledger.ContainerStatus(c)
	if !st.Frozen {
		return nil
	}
	if err := cgroup.Thaw(st.CgroupPath); err != nil {
		return err
	}
	f.Ledger.UpdateContainer(c, func(st *ledger.ContainerStatus) { st.Frozen = false })
	return f.Ledger.SaveContainer(ctx, c)
}

// Release lets a container go on whoever has frozen it, or all of its pod. What is above the pod's cgroup is not the runtime's.
func (f Freezer) Release(ctx context.Context, c *ledger.Container) error {
	st := f.Ledger.ContainerStatus(c)
	top := st.CgroupPath
	if p, err := f.Ledger.Pod(st.PodID); err == nil {
		top = f.Ledger.PodStatus(p).CgroupPath
	}
	return errors.Join(f.Thaw(ctx, c), cgroup.ThawUp(st.CgroupPath, top))
}

// ThawAll lets the containers go on that the last daemon has left frozen.
func (f Freezer) ThawAll(ctx context.Context) {
	for _, st := range f.Ledger.Containers() {
		c, err := f.Ledger.Container(st.ID)
		if err != nil || !st.Frozen {
			continue
		}
		if err := f.Thaw(ctx, c); err != nil {
			logrus.WithError(err).WithField("container", st.ID).Error("cannot thaw a container")
		}
	}
}
