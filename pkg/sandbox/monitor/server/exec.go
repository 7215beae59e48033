package server

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/runtime"
)

// exec runs a process in a container and returns when it, the direct child, ends; descendants may live on in the
// container. It is killed with all its descendants when its time runs out, the client hangs up, or the container ends.
func (s *Server) exec(ctx context.Context, p monitor.ExecRequest, files []*os.File) (*monitor.ExecResponse, error) {
	c, err := s.lookup(p.ID)
	if err != nil {
		return nil, err
	}
	if len(files) != 3 || p.Process == nil {
		return nil, fmt.Errorf("exec in %s: want a process and 3 descriptors, got %d", p.ID, len(files))
	}
	if st := c.snapshot(); st.Phase != monitor.PhaseRunning {
		return nil, fmt.Errorf("container %s is %s: %w", p.ID, st.Phase, monitor.ErrNotRunning)
	}
	pid, err := c.runtime.Exec(ctx, p.ID, p.Process, runtime.Stdio{Stdin: files[0], Stdout: files[1], Stderr: files[2]})
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
		killTree(pid)
		return nil, err
	}
	exited := make(chan unix.WaitStatus, 1)
	go func() {
		status, _ := proc.wait()
		exited <- status
	}()
	return awaitExec(ctx, c, pid, p.Timeout, exited)
}

func awaitExec(ctx context.Context, c *container, pid int, timeout time.Duration, exited <-chan unix.WaitStatus) (*monitor.ExecResponse, error) {
	var expired <-chan time.Time
	if timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		expired = timer.C
	}
	gone := c.gone
	timedOut := false
	for {
		select {
		case status := <-exited:
			return &monitor.ExecResponse{ExitCode: exitCode(status), TimedOut: timedOut}, nil
		case <-expired:
			timedOut, expired = true, nil
			killTree(pid)
		case <-gone:
			gone = nil
			killTree(pid)
		case <-ctx.Done():
			killTree(pid)
			<-exited
			return nil, context.Cause(ctx)
		}
	}
}
