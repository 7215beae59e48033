package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

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
	if st.Phase.Terminal() || st.Phase == ContainerCreating {
		return nil
	}
	if st.Phase == ContainerCreated || grace <= 0 {
		return s.killContainer(ctx, c)
	}
	if err := s.thaw(ctx, c); err != nil { // a frozen process gets no signal
		return fmt.Errorf("stop container %s: %w", st.ID, err)
	}
	if err := s.sendStopSignal(ctx, c); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.Exited():
		return nil
	case <-timer.C:
	case <-ctx.Done():
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
	err = s.monitor.Signal(ctx, monitor.SignalRequest{ID: st.ID, Signal: int(sig)})
	if err != nil && !gone(err) {
		s.ledger.MarkSignaled(c, false)
		return fmt.Errorf("stop container %s: %w", st.ID, err)
	}
	return nil
}

// killContainer kills all processes of a container and waits until they are gone.
func (s *Service) killContainer(ctx context.Context, c *ledger.Container) error {
	st := s.ledger.ContainerStatus(c)
	if st.Phase.Terminal() || st.Phase == ContainerCreating {
		return nil
	}
	if err := s.thaw(ctx, c); err != nil {
		return fmt.Errorf("kill container %s: %w", st.ID, err)
	}
	err := s.monitor.Signal(ctx, monitor.SignalRequest{ID: st.ID, Signal: int(unix.SIGKILL), All: true})
	if err != nil && !gone(err) {
		return fmt.Errorf("kill container %s: %w", st.ID, err)
	}
	timer := time.NewTimer(killLimit)
	defer timer.Stop()
	select {
	case <-c.Exited():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill container %s: %w", st.ID, context.Cause(ctx))
	case <-timer.C:
		return fmt.Errorf("container %s does not end %s after SIGKILL (pid %d may be in uninterruptible sleep): %w",
			st.ID, killLimit, st.PID, context.DeadlineExceeded)
	}
}

// gone tells that crimonitor has no such process any more; its exit is on the way.
func gone(err error) bool {
	return errors.Is(err, monitor.ErrNotFound) || errors.Is(err, monitor.ErrNotRunning)
}
