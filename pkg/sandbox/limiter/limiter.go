// Package limiter changes the limits of containers that exist, in one transaction with their records.
package limiter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/cgroup/limit"
	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/spec"
)

// undoLimit bounds what is done after a failure, whatever has become of the call.
const undoLimit = 2 * time.Minute

// Scores are the oom_score_adj in the specifications of containers, which later commands in them get.
type Scores interface {
	Score(id string) (int, error)
	SetScore(id string, score int) error
}

// Limiter changes limits of the containers in a ledger.
type Limiter struct {
	Ledger *ledger.Ledger
	Scores Scores
}

// Change changes the limits of a created or running container, and the oom_score_adj of its processes; what change leaves unset stays.
// All of it happens or nothing, whatever this process lives through: the plan is recorded before the first write, and
// a start of the daemon takes back what no end was recorded of. ledger.ErrState; limit.ErrInUse: more memory is in use than the new
// limit; limit.ErrRefused, spec.ErrInvalid: what the kernel or the CRI does not allow.
func (l Limiter) Change(ctx context.Context, id string, change spec.Resources) error {
	c, err := l.Ledger.Container(id)
	if err != nil {
		return err
	}
	if err := c.Acquire(ctx); err != nil {
		return err
	}
	defer c.Release()
	st := l.Ledger.ContainerStatus(c)
	if st.Phase != ledger.ContainerCreated && st.Phase != ledger.ContainerRunning {
		return fmt.Errorf("update container %s: it is %s: %w", id, st.Phase, ledger.ErrState)
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
	if plan, err = l.addScore(plan, st, change); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	if err := l.change(ctx, c, plan, limits, merged); err != nil {
		if p := l.Ledger.ContainerStatus(c).Phase; p.Terminal() {
			return fmt.Errorf("update container %s: it is %s: %w: %w", id, p, ledger.ErrState, err)
		}
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

// addScore plans the change of the score, as far as this process may lower it.
func (l Limiter) addScore(plan limit.Plan, st ledger.ContainerStatus, change spec.Resources) (limit.Plan, error) {
	if change.OOMScoreAdj == 0 {
		return plan, nil
	}
	score, err := host.OOMScore(int(change.OOMScoreAdj))
	if err != nil {
		return nil, err
	}
	old, err := l.Scores.Score(st.ID)
	if err != nil || old == score {
		return plan, err
	}
	return append(plan, limit.Score(st.CgroupPath, old, score)), nil
}

// writeScore makes the specification of a container say what its processes have: the new score of the plan, or the old one.
func (l Limiter) writeScore(id string, plan limit.Plan, pick func(limit.Write) string) error {
	for _, w := range plan {
		if w.Processes == "" {
			continue
		}
		score, err := strconv.Atoi(pick(w))
		if err != nil {
			return err
		}
		return l.Scores.SetScore(id, score)
	}
	return nil
}

func newScore(w limit.Write) string { return w.New }
func oldScore(w limit.Write) string { return w.Old }

// change needs the container's slot. limits are those of the plan, merged all that the container has with them.
func (l Limiter) change(ctx context.Context, c *ledger.Container, plan limit.Plan, limits *specs.LinuxResources, merged spec.Resources) error {
	st := l.Ledger.UpdateContainer(c, func(st *ledger.ContainerStatus) { st.Updating = plan })
	old := st.Config.Resources
	err := l.Ledger.SaveContainer(ctx, c) // the intent
	applied := false
	if err == nil {
		err = plan.Apply()
		applied = err == nil
	}
	if err == nil {
		err = driver.Sync(ctx, st.CgroupPath, limits)
	}
	if err == nil {
		err = l.writeScore(st.ID, plan, newScore)
	}
	if err == nil {
		l.Ledger.UpdateContainer(c, func(st *ledger.ContainerStatus) { st.Updating, st.Config.Resources = nil, merged })
		err = l.Ledger.SaveContainer(ctx, c)
	}
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	if applied {
		err = errors.Join(err, plan.Undo(), syncLimits(ctx, st.CgroupPath, old), l.writeScore(st.ID, plan, oldScore))
	}
	l.Ledger.UpdateContainer(c, func(st *ledger.ContainerStatus) { st.Updating, st.Config.Resources = nil, old })
	return errors.Join(err, l.Ledger.SaveContainer(ctx, c))
}

// syncLimits tells the cgroup's driver of all limits of a container.
func syncLimits(ctx context.Context, path string, r spec.Resources) error {
	limits, err := host.Limits(r)
	if err != nil {
		return err
	}
	return driver.Sync(ctx, path, limits)
}

// UndoAll takes back the changes of limits that the last daemon has not brought to an end.
func (l Limiter) UndoAll(ctx context.Context) {
	for _, st := range l.Ledger.Containers() {
		c, err := l.Ledger.Container(st.ID)
		if err != nil || st.Updating == nil {
			continue
		}
		err = errors.Join(st.Updating.Undo(), syncLimits(ctx, st.CgroupPath, st.Config.Resources), l.writeScore(st.ID, st.Updating, oldScore))
		l.Ledger.UpdateContainer(c, func(st *ledger.ContainerStatus) { st.Updating = nil })
		if err = errors.Join(err, l.Ledger.SaveContainer(ctx, c)); err != nil {
			logrus.WithError(err).WithField("container", st.ID).Error("cannot take back an update that was cut off")
		}
	}
}
