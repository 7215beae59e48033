package server

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/runtime"
)

// restore is what a container is made of that has no process yet.
type restore struct {
	bundle string
	from   runtime.Images
	by     runtime.Checkpointer
	theirs theirs
}

// dump writes down the state of a container's processes. Neither start nor delete comes in between.
func (s *Server) dump(ctx context.Context, p monitor.DumpRequest) error {
	c, err := s.lookup(p.ID)
	if err != nil {
		return err
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if st := c.snapshot(); st.Phase != monitor.PhaseRunning {
		return fmt.Errorf("container %s is %s: %w", p.ID, st.Phase, monitor.ErrNotRunning)
	}
	by, ok := c.runtime.(runtime.Checkpointer)
	if !ok {
		return fmt.Errorf("the runtime of container %s cannot checkpoint", p.ID)
	}
	defer releaseMemory()
	return by.Checkpoint(ctx, p.ID, p.To)
}

// prepareRestore makes the streams of a container, so that it can be attached to. Its processes come with its start.
func (s *Server) prepareRestore(c *container, p monitor.CreateRequest, from runtime.Images) error {
	by, ok := c.runtime.(runtime.Checkpointer)
	if !ok {
		return fmt.Errorf("the runtime of container %s cannot restore", p.ID)
	}
	io, container, err := openStdio(p)
	if err != nil {
		return err
	}
	c.restore = &restore{bundle: p.Bundle, from: from, by: by, theirs: container}
	c.mu.Lock()
	c.io = io
	c.state = monitor.State{ID: c.id, Phase: monitor.PhaseCreated}
	c.mu.Unlock()
	s.changed(c.id)
	return nil
}

// startRestored makes the processes of a container, whose slot is the caller's. After an error it cannot be started again.
func (s *Server) startRestored(ctx context.Context, c *container) error {
	r := c.restore
	defer c.endRestore()
	at := time.Now()
	pid, err := r.by.Restore(ctx, c.id, r.bundle, r.from, r.theirs.Stdio)
	if err != nil {
		return err
	}
	defer releaseMemory()
	c.mu.Lock()
	io := c.io
	c.mu.Unlock()
	return s.adopt(ctx, c, pid, io, r.theirs, monitor.State{ID: c.id, Phase: monitor.PhaseRunning, PID: pid, StartedAt: at})
}

// endRestore drops what is there for a restore; the container's slot is the caller's.
func (c *container) endRestore() {
	if c.restore != nil {
		c.restore.theirs.close()
		c.restore = nil
	}
}

// giveUp ends a container that waits to be restored. One whose restore is under way is ended by its cgroup, which the caller kills
// when it does not end otherwise.
func (s *Server) giveUp(ctx context.Context, c *container) error {
	select {
	case c.ops <- struct{}{}:
		defer c.release()
	default:
		return nil
	}
	if st := c.snapshot(); st.Phase != monitor.PhaseCreated || st.PID != 0 {
		return c.runtime.Kill(ctx, c.id)
	}
	c.endRestore()
	c.clients.end()
	c.closeStreams()
	c.mu.Lock()
	c.state.Phase, c.state.ExitedAt, c.state.ExitCode = monitor.PhaseExited, time.Now(), 128+int(unix.SIGKILL)
	c.mu.Unlock()
	close(c.gone)
	s.changed(c.id)
	return nil
}
