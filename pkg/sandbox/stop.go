package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/signals"
)

// StopContainer sends the container's stop signal, and SIGKILL to all its processes when it has not ended after grace.
// Each caller's grace counts for itself, so that a later call with a shorter one shortens the wait. It is idempotent; an
// unknown container is no error.
func (s *Service) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := s.ledger.Container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	st := s.ledger.ContainerStatus(c)
	if st.Phase == ContainerCreating {
		return nil
	}
	if st.Phase == ContainerCreated || st.Phase.Terminal() || grace <= 0 {
		return s.killContainer(ctx, c)
	}
	// A frozen process gets no signal, whoever has frozen it.
	if err := s.freezer().Release(ctx, c); err != nil {
		return fmt.Errorf("stop container %s: %w", st.ID, err)
	}
	patience, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := s.sendStopSignal(patience, c); err != nil { // it may have come all the same
		logrus.WithError(err).WithField("container", st.ID).Warn("crimonitor cannot send the stop signal; the container is killed after its grace period")
	}
	select {
	case <-c.Exited():
		return nil
	case <-patience.Done():
	}
	if ctx.Err() != nil {
		return fmt.Errorf("stop container %s: %w", st.ID, context.Cause(ctx))
	}
	logrus.WithFields(logrus.Fields{"container": st.ID, "grace": grace}).Info("container is killed after its grace period")
	return s.killContainer(ctx, c)
}

// sendStopSignal sends the stop signal once in a container's life: a program may take a second one for impatience.
func (s *Service) sendStopSignal(ctx context.Context, c *ledger.Container) error {
	if s.ledger.MarkSignaled(c, true) {
		return nil
	}
	st := s.ledger.ContainerStatus(c)
	sig, err := signals.Parse(st.StopSignal)
	if err != nil { // of the image: the configuration's was checked
		logrus.WithError(err).WithField("container", st.ID).Warn("the image's stop signal is not known, SIGTERM is sent")
		sig = unix.SIGTERM
	}
	err = s.signal(ctx, monitor.SignalRequest{ID: st.ID, Signal: int(sig)})
	if err != nil {
		s.ledger.MarkSignaled(c, false)
	}
	return err
}

// Times of a kill: how long crimonitor may take to send the signal, and how long the processes may take to end before all
// that are in the cgroup are killed, again and again, and what does not end is told of.
const (
	signalLimit = 5 * time.Second
	endGrace    = time.Second
)

// killContainer kills all processes of a container and waits until they are gone. One that is being made is given up. What does
// not end is named in the status.
func (s *Service) killContainer(ctx context.Context, c *ledger.Container) error {
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	st := s.ledger.ContainerStatus(c)
	if st.Phase == ContainerCreating {
		s.containerFlights.Cancel(st.Key(), fmt.Errorf("container %s is being removed: %w", st.ID, ErrState))
		if err := c.Acquire(ctx); err != nil { // what it has made so far is removed
			return fmt.Errorf("kill container %s while it is created: %w", st.ID, err)
		}
		c.Release()
		st = s.ledger.ContainerStatus(c)
	}
	if st.Phase.Terminal() { // it may not have ended, where crimonitor failed to start or to delete it
		return kill.All(ctx, st.CgroupPath)
	}
	if err := s.freezer().Release(ctx, c); err != nil {
		return fmt.Errorf("kill container %s: %w", st.ID, err)
	}
	go func() { // whatever keeps crimonitor from it, the cgroup is enough to end the processes
		if err := s.signal(ctx, monitor.SignalRequest{ID: st.ID, Signal: int(unix.SIGKILL), All: true}); err != nil && ctx.Err() == nil {
			logrus.WithError(err).WithField("container", st.ID).Warn("crimonitor cannot kill a container; it is killed by its cgroup")
		}
	}()
	again := time.NewTicker(endGrace)
	defer again.Stop()
	dir := kill.Dir(st.CgroupPath)
	for {
		select {
		case <-c.Exited():
			return nil
		case <-again.C:
			if err := kill.Tree(dir); err != nil {
				logrus.WithError(err).WithField("container", st.ID).Warn("cannot kill a container by its cgroup")
			}
			s.noteHolders(c, dir)
		case <-ctx.Done():
			return fmt.Errorf("container %s does not end after SIGKILL: %s: %w", st.ID, s.noteHolders(c, dir), context.Cause(ctx))
		}
	}
}

// signal has crimonitor send a signal. That there is no such process any more is no error: its exit is on the way.
func (s *Service) signal(ctx context.Context, r monitor.SignalRequest) error {
	ctx, cancel := context.WithTimeout(ctx, signalLimit)
	defer cancel()
	err := s.monitor.Signal(ctx, r)
	if gone(err) {
		return nil
	}
	return err
}

// gone tells that crimonitor has no such process any more.
func gone(err error) bool {
	return errors.Is(err, monitor.ErrNotFound) || errors.Is(err, monitor.ErrNotRunning)
}

// noteHolders says in the status of a container that was killed which processes hold it up.
func (s *Service) noteHolders(c *ledger.Container, dir string) string {
	holders := cmp.Or(kill.Holders(dir), "its processes have ended, and crimonitor has not told of it")
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) {
		if !st.Phase.Terminal() {
			st.Message = "killed, but it does not end: " + holders
		}
	})
	return holders
}
