package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/monitor/launch"
	"criserver/pkg/sandbox/plugin"
)

// followMonitor keeps a crimonitor running and follows its containers until ctx ends.
func (s *Service) followMonitor(ctx context.Context) {
	for wait := 100 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		err := launch.Ensure(ctx, s.config.Monitor)
		if err == nil {
			started := time.Now()
			err = s.follow(ctx)
			if time.Since(started) > 10*time.Second {
				wait = 100 * time.Millisecond
			}
		}
		if ctx.Err() != nil {
			return
		}
		s.setMonitorError(fmt.Errorf("%w: %w", ErrUnavailable, err))
		logrus.WithError(err).Error("no crimonitor; it is tried again")
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// follow watches one crimonitor until it goes away.
func (s *Service) follow(ctx context.Context) error {
	// Only what was there before the watch began can be missing from it.
	expected := s.expected()
	seen := map[string]monitor.State{}
	synced := false
	return s.monitor.Watch(ctx, func(e monitor.Event) {
		switch {
		case e.Synced:
			synced = true
			s.reconcile(ctx, expected, seen)
		case e.State != nil && !synced:
			seen[e.State.ID] = *e.State
			s.onState(ctx, *e.State)
		case e.State != nil:
			s.onState(ctx, *e.State)
		}
	})
}

// onState takes in what crimonitor says of a container.
func (s *Service) onState(ctx context.Context, state monitor.State) {
	c, err := s.ledger.Container(state.ID)
	if errors.Is(err, ErrNotFound) {
		if p := s.podOfInit(state.ID); p != nil && state.Phase == monitor.PhaseExited {
			s.background.Go(func() { s.onPodInitExit(ctx, p) })
		}
		return
	}
	switch state.Phase {
	case monitor.PhaseRunning:
		s.onRunning(c, state)
	case monitor.PhaseExited:
		s.onExit(ctx, c, state)
	}
}

// onRunning is the event of a workload being let go. Phases only go forward, whatever order the news comes in.
func (s *Service) onRunning(c *ledger.Container, state monitor.State) {
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) {
		if st.Phase == ContainerCreated {
			st.Phase, st.PID = ContainerRunning, state.PID // one that is restored has none before
		}
		st.StartedAt = state.StartedAt.Round(0)
		st.LogBytesLost, st.LogBytesDropped = state.LogBytesLost, state.LogBytesDropped
	})
}

// onExit is the event of a container's end. The record is written, and what the container held while it ran released,
// in the background: the next event must not wait for a disk.
func (s *Service) onExit(ctx context.Context, c *ledger.Container, state monitor.State) {
	first := false
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) {
		if st.Phase.Terminal() {
			return
		}
		first = true
		st.Phase, st.PID = ContainerExited, 0
		st.LogBytesLost, st.LogBytesDropped = state.LogBytesLost, state.LogBytesDropped
		if !state.StartedAt.IsZero() {
			st.StartedAt = state.StartedAt.Round(0)
		}
		st.FinishedAt, st.ExitCode, st.Message = state.ExitedAt.Round(0), state.ExitCode, ""
		switch {
		case state.OOMKilled:
			st.Reason = ReasonOOMKilled
			if state.OOMCause != "" {
				st.Message = "a process was killed for want of memory: " + state.OOMCause
			}
		case state.ExitCode == 0:
			st.Reason = ReasonCompleted
		default:
			st.Reason = ReasonError
		}
	})
	if first {
		s.background.Go(func() { s.settle(ctx, c) })
	}
}

// settle writes down the end of a container and releases what only a running one needs. What fails is done by its removal
// or the next start.
func (s *Service) settle(ctx context.Context, c *ledger.Container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	st := s.ledger.ContainerStatus(c)
	log := logrus.WithField("container", st.ID)
	if err := s.ledger.SaveContainer(ctx, c); err != nil {
		log.WithError(err).Error("cannot record the end of a container")
		return // crimonitor keeps it for the next start
	}
	if err := c.Acquire(ctx); err != nil {
		return
	}
	defer c.Release()
	if st = s.ledger.ContainerStatus(c); st.Phase != ContainerExited {
		return // being removed, which does all this
	}
	_ = s.plugins.ContainerEvent(ctx, plugin.StopContainer, st)
	if err := s.cleanContainer(ctx, st.ID); err != nil {
		log.WithError(err).Warn("cannot release all of a container that ended; its removal tries again")
	}
}

// onLost is the event of a container that crimonitor does not know although it should: crimonitor died. What still runs
// has no parent, no log and no one to take its exit code, so it is killed; only then is it called exited.
func (s *Service) onLost(ctx context.Context, c *ledger.Container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	st := s.ledger.ContainerStatus(c)
	log := logrus.WithField("container", st.ID)
	if err := s.monitor.Delete(ctx, st.ID, s.bundles.Dir(st.ID)); err != nil {
		log.WithError(err).Error("a container without a monitor cannot be ended")
		return
	}
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) {
		if st.Phase.Terminal() {
			return
		}
		st.Phase, st.PID, st.FinishedAt = ContainerExited, 0, ledger.Now()
		st.ExitCode, st.Reason = exitUnknown, ReasonUnknown
		st.Message = "crimonitor or the machine went down while the container ran; its exit code is not known"
	})
	log.Warn("container was lost with its monitor")
	s.settle(ctx, c)
}
