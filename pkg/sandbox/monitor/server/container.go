package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/oom"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/monitor/crilog"
	"criserver/pkg/sandbox/monitor/journal"
	"criserver/pkg/sandbox/runtime"
)

// drainWait bounds how long an exit waits for the last output: a descendant in another PID namespace may hold the
// pipes open for ever.
const drainWait = time.Second

// container is one container. Its state is written by created, started and exited only, one method an event.
type container struct {
	id      string
	runtime runtime.Runtime
	log     *crilog.Log
	cgroup  string
	// ops is held by the one create, start or delete that is under way.
	ops chan struct{}
	// dying is closed when the init process has ended, gone once exited has run.
	dying, gone chan struct{}
	// pumps counts the streams that are still read.
	pumps   sync.WaitGroup
	clients clients
	// io is set before the container is to be found by others, but for its input, which mu guards.
	io        stdio
	stdinOnce bool
	losses    losses
	// restore is what a container that has no process yet is to be restored from; ops guards it.
	restore *restore

	mu    sync.Mutex
	state monitor.State
	proc  *process // set with state.PID
}

func (c *container) snapshot() monitor.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.state
	st.LogBytesLost, st.LogBytesDropped = c.log.Lost(), c.log.Dropped()
	return st
}

func (s *Server) lookup(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, monitor.ErrNotFound)
}

// acquire takes the container's operation slot.
func (c *container) acquire(ctx context.Context) error {
	select {
	case c.ops <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s is busy: %w", c.id, context.Cause(ctx))
	}
}

func (c *container) release() { <-c.ops }

// create makes a container; with from one that is restored when it is started.
func (s *Server) create(ctx context.Context, p monitor.CreateRequest, from *runtime.Images) (*monitor.CreateResponse, error) {
	log, err := crilog.Open(p.LogPath)
	if err != nil {
		return nil, err
	}
	log.Limit(p.LogRate, p.LogBurst)
	if len(p.Journal) > 0 {
		w, err := journal.Open(journal.Socket, p.Journal)
		if err != nil {
			return nil, errors.Join(err, log.Close())
		}
		log.CopyTo(w)
	}
	c := &container{
		id: p.ID, log: log, cgroup: p.Cgroup, stdinOnce: p.StdinOnce, ops: make(chan struct{}, 1),
		dying: make(chan struct{}), gone: make(chan struct{}),
	}
	c.ops <- struct{}{}
	defer c.release()
	s.mu.Lock()
	if s.containers[p.ID] != nil {
		s.mu.Unlock()
		return nil, errors.Join(fmt.Errorf("container %s: %w", p.ID, monitor.ErrExists), log.Close())
	}
	s.containers[p.ID] = c
	s.mu.Unlock()
	pid, err := s.make(ctx, c, p, from)
	if err != nil {
		s.mu.Lock()
		delete(s.containers, p.ID)
		s.mu.Unlock()
		c.closeStreams()
		return nil, errors.Join(err, c.closeLog())
	}
	return &monitor.CreateResponse{PID: pid}, nil
}

// make gives a container its runtime and launches it. On error nothing is left.
func (s *Server) make(ctx context.Context, c *container, p monitor.CreateRequest, from *runtime.Images) (int, error) {
	var err error
	if c.runtime, err = s.runtimes.Assign(p.ID, p.Bundle, p.Runtime); err != nil {
		return 0, err
	}
	var pid int
	if from != nil {
		err = s.prepareRestore(c, p, *from)
	} else {
		pid, err = s.launch(ctx, c, p)
	}
	if err != nil {
		return 0, errors.Join(err, c.runtime.Delete(context.WithoutCancel(ctx), p.ID, p.Bundle))
	}
	return pid, nil
}

// launch makes the streams and the init process, and starts to read the ones and to await the other.
func (s *Server) launch(ctx context.Context, c *container, p monitor.CreateRequest) (int, error) {
	io, container, err := openStdio(p)
	if err != nil {
		return 0, err
	}
	defer container.close()
	c.mu.Lock()
	c.io = io
	c.mu.Unlock()
	pid, err := c.runtime.Create(ctx, c.id, p.Bundle, container.Stdio)
	if err != nil {
		return 0, err
	}
	return pid, s.adopt(ctx, c, pid, io, container, monitor.State{ID: c.id, Phase: monitor.PhaseCreated, PID: pid})
}

// adopt takes a new init process as a container's, whose state becomes st, and starts to read its streams and to await its end.
func (s *Server) adopt(ctx context.Context, c *container, pid int, io stdio, container theirs, st monitor.State) error {
	s.children.own(pid)
	proc, err := openProcess(pid)
	if err == nil {
		err = io.receive(ctx, container)
	}
	if err != nil {
		// Without a pidfd the exit would go unseen.
		_ = unix.Kill(pid, unix.SIGKILL)
		return errors.Join(err, s.children.reap(pid))
	}
	c.mu.Lock()
	c.io = io
	c.state = st
	c.proc = proc
	c.mu.Unlock()
	c.pumpAll(func() { s.changed(c.id) })
	s.changed(c.id)
	s.watchOOM(c)
	go s.await(c, proc)
	return nil
}

// closeStreams ends the reading of what still has another end.
func (c *container) closeStreams() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.io.close()
}

func (s *Server) start(ctx context.Context, id string) (*monitor.State, error) {
	c, err := s.lookup(id)
	if err != nil {
		return nil, err
	}
	if err := c.acquire(ctx); err != nil {
		return nil, err
	}
	defer c.release()
	if st := c.snapshot(); st.Phase != monitor.PhaseCreated {
		return nil, fmt.Errorf("container %s is %s, not created: %w", id, st.Phase, monitor.ErrNotRunning)
	}
	if c.restore != nil {
		if err := s.startRestored(ctx, c); err != nil {
			return nil, err
		}
		st := c.snapshot()
		return &st, nil
	}
	at := time.Now() // before: a program that has started it may end later than a short workload
	if err := c.runtime.Start(ctx, id); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.state.StartedAt = at
	if c.state.Phase == monitor.PhaseCreated { // else it has ended already
		c.state.Phase = monitor.PhaseRunning
	}
	c.mu.Unlock()
	s.changed(id)
	st := c.snapshot()
	return &st, nil
}

// await reaps the init process and publishes its exit once the last output is in the log.
func (s *Server) await(c *container, proc *process) {
	status, at := proc.wait()
	close(c.dying)
	s.children.disown(proc.pid)
	ctx := context.Background()
	killed, cause := s.outOfMemory(ctx, c, exitCode(status) == 128+int(unix.SIGKILL))
	// In a PID namespace of its own all others died with init; elsewhere they are still there.
	if err := c.runtime.Kill(ctx, c.id); err != nil && !errors.Is(err, runtime.ErrNotFound) {
		logrus.WithError(err).WithField("container", c.id).Warn("processes may be left after the exit of init")
	}
	drained := make(chan struct{})
	go func() {
		c.pumps.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(drainWait):
		logrus.WithField("container", c.id).Warn("a process outside of the container holds its output open")
	}
	c.clients.end()
	if !c.io.terminal { // whose master the pump closes
		c.closeInput()
	}
	c.mu.Lock()
	c.state.Phase = monitor.PhaseExited
	c.state.ExitedAt, c.state.ExitCode, c.state.OOMKilled = at, exitCode(status), killed
	c.state.OOMCause = cause
	c.mu.Unlock()
	close(c.gone)
	s.changed(c.id)
	logrus.WithFields(logrus.Fields{"container": c.id, "pid": proc.pid, "code": exitCode(status), "oom": killed}).
		Info("container exited")
	releaseMemory()
}

// systemdScope tells whether systemd removes the cgroup of the container when its processes have ended.
func (c *container) systemdScope() bool { return strings.HasSuffix(c.cgroup, ".scope") }

// watchOOM has OOM kills of the container known although systemd removes its cgroup.
func (s *Server) watchOOM(c *container) {
	if !c.systemdScope() {
		return
	}
	w, err := s.ooms()
	if err == nil {
		err = w.Add(c.cgroup)
	}
	if err != nil {
		logrus.WithError(err).WithField("container", c.id).Warn("an OOM kill of a container may go unseen")
	}
}

// outOfMemory reads why a process of the container was killed for want of memory, if one was, before the cgroup goes. sigkill tells
// that its init process ended by that signal.
func (s *Server) outOfMemory(ctx context.Context, c *container, sigkill bool) (killed bool, cause string) {
	if c.cgroup != "" {
		cause = oom.Cause(c.cgroup)
	}
	if c.systemdScope() {
		if w, err := s.ooms(); err == nil {
			cause = cmp.Or(w.Take(c.cgroup, sigkill), cause)
		}
	}
	if cause != "" {
		return true, cause
	}
	killed, err := c.runtime.OOMKilled(ctx, c.id)
	if err != nil {
		logrus.WithError(err).WithField("container", c.id).Debug("no OOM count")
	}
	return killed, ""
}

func (s *Server) signal(ctx context.Context, p monitor.SignalRequest) error {
	c, err := s.lookup(p.ID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	phase, proc := c.state.Phase, c.proc
	c.mu.Unlock()
	if proc == nil && phase == monitor.PhaseCreated && p.Signal == int(unix.SIGKILL) {
		return s.giveUp(ctx, c)
	}
	if phase == monitor.PhaseExited || proc == nil {
		return fmt.Errorf("container %s: %w", p.ID, monitor.ErrNotRunning)
	}
	// A workload that was not started has no handler of its own, and the waiting init ignores what its runtime
	// ignores; only SIGKILL ends it for sure.
	if p.All || phase == monitor.PhaseCreated {
		return c.runtime.Kill(ctx, p.ID)
	}
	if err := proc.signal(unix.Signal(p.Signal)); err != nil {
		return fmt.Errorf("signal container %s: %w", p.ID, err)
	}
	return nil
}

func (s *Server) reopen(id string) error {
	c, err := s.lookup(id)
	if err != nil {
		return err
	}
	return c.log.Reopen()
}

func (s *Server) delete(ctx context.Context, p monitor.IDRequest) error {
	c, err := s.lookup(p.ID)
	if errors.Is(err, monitor.ErrNotFound) {
		rt, err := s.runtimes.Of(p.ID)
		if err != nil {
			return err
		}
		return rt.Delete(ctx, p.ID, p.Bundle)
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if c.snapshot().PID != 0 {
		if err := c.runtime.Kill(ctx, p.ID); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return err
		}
		select {
		case <-c.gone:
		case <-ctx.Done():
			return fmt.Errorf("container %s does not end after SIGKILL: %w", p.ID, context.Cause(ctx))
		}
	}
	if err := c.runtime.Delete(ctx, p.ID, p.Bundle); err != nil {
		return err
	}
	c.endRestore()
	c.closeStreams()
	s.mu.Lock()
	known := s.containers[p.ID] == c
	delete(s.containers, p.ID)
	s.mu.Unlock()
	if known {
		s.changed(p.ID)
	}
	return c.closeLog()
}

// closeLog closes the log. One on a disk that hangs is closed when that answers: what is left to do for it is nobody's to
// wait for.
func (c *container) closeLog() error {
	closed := make(chan error, 1)
	go func() { closed <- c.log.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(drainWait):
		logrus.WithField("container", c.id).Warn("the container's log does not answer; its end may be lost")
		return nil
	}
}
