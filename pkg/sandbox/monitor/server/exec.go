package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/runtime"
)

// exec runs a process in a container and returns when it, the direct child, ends; descendants may live on in the
// container. It is killed with its descendants, see tree, when its time runs out, the client hangs up, or the container ends.
func (s *Server) exec(ctx context.Context, p monitor.ExecRequest, files []*os.File) (*monitor.ExecResponse, error) {
	c, err := s.lookup(p.ID)
	if err != nil {
		return nil, err
	}
	io, err := execStdio(p, files)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", p.ID, err)
	}
	st := c.snapshot()
	if st.Phase != monitor.PhaseRunning {
		return nil, fmt.Errorf("container %s is %s: %w", p.ID, st.Phase, monitor.ErrNotRunning)
	}
	pipes := pipesOf(files)
	pid, err := c.runtime.Exec(ctx, p.ID, p.Process, io)
	if err != nil {
		return nil, err
	}
	// The client reads to the end of its pipes, which comes only once this side has closed them too.
	monitor.CloseFiles(files)
	defer releaseMemory()
	s.children.own(pid)
	defer s.children.disown(pid)
	proc, err := openProcess(pid)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // it is this process's child, and nobody has reaped it
		return nil, err
	}
	exited := make(chan unix.WaitStatus, 1)
	go func() {
		status, _ := proc.wait()
		exited <- status
	}()
	return awaitExec(ctx, c, &tree{command: proc, init: st.PID, cgroup: c.cgroup, pipes: pipes}, p, exited)
}

// execStdio takes the descriptors for what they are.
func execStdio(p monitor.ExecRequest, files []*os.File) (runtime.Stdio, error) {
	switch {
	case p.Process == nil:
		return runtime.Stdio{}, errors.New("no process")
	case p.Process.Terminal && len(files) == 1:
		return runtime.Stdio{Console: files[0]}, nil
	case !p.Process.Terminal && len(files) == 3:
		return runtime.Stdio{Stdin: files[0], Stdout: files[1], Stderr: files[2]}, nil
	}
	return runtime.Stdio{}, fmt.Errorf("%d descriptors are too few or too many", len(files))
}

// hangUp ends a command whose client has gone: by SIGHUP, and by force if that does not end it in time. What it has started is told
// too, and may live on if it ignores that, as with nohup(1).
func hangUp(t *tree, grace time.Duration, exited <-chan unix.WaitStatus) {
	if grace < 0 {
		return
	}
	if grace > 0 {
		t.hangUp()
		select {
		case <-exited:
			return
		case <-time.After(grace):
		}
	}
	t.kill()
	<-exited
}

func awaitExec(
	ctx context.Context, c *container, t *tree, p monitor.ExecRequest, exited <-chan unix.WaitStatus,
) (*monitor.ExecResponse, error) {
	var expired <-chan time.Time
	if p.Timeout > 0 {
		timer := time.NewTimer(p.Timeout)
		defer timer.Stop()
		expired = timer.C
	}
	gone := c.gone
	resp := &monitor.ExecResponse{}
	for {
		select {
		case status := <-exited:
			resp.ExitCode = exitCode(status)
			if !resp.TimedOut && status.Signaled() && status.Signal() == unix.SIGKILL && c.ends(t.init) {
				resp.ContainerEnded = true
			}
			return resp, nil
		case <-expired:
			resp.TimedOut, expired = true, nil
			t.kill()
		case <-gone:
			resp.ContainerEnded, gone = true, nil
			t.kill()
		case <-ctx.Done():
			hangUp(t, p.Grace, exited)
			return nil, context.Cause(ctx)
		}
	}
}

// endWait is how long after the death of a command its container's may be noticed, when both are killed at once.
const endWait = 100 * time.Millisecond

// ends tells whether the container ends, whose command has been killed: the kernel kills all in the PID namespace of an init that ends,
// before that is to be reaped, and who kills a cgroup kills its processes in no order.
func (c *container) ends(init int) bool {
	ending := func() bool {
		st, ok := readStat(init)
		return !ok || st.ending()
	}
	if ending() {
		return true
	}
	select {
	case <-c.dying:
		return true
	case <-time.After(endWait):
		return ending()
	}
}
