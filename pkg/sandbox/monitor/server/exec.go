package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/procfs"
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
	e := &execution{ExecRequest: p, container: c, exited: make(chan unix.WaitStatus, 1)}
	if p.Timeout > 0 {
		e.deadline = time.Now().Add(p.Timeout)
	}
	e.tree = tree{init: st.PID, cgroup: c.cgroup, pipes: pipesOf(files)}
	if p.Grace < 0 {
		if e.keeper, io, err = keep(io); err != nil {
			return nil, fmt.Errorf("exec in %s: %w", p.ID, err)
		}
	}
	if err := s.beginInTime(ctx, e, io); err != nil {
		e.keeper.close()
		if errors.Is(err, errNotInTime) {
			return &monitor.ExecResponse{TimedOut: true}, nil
		}
		return nil, err
	}
	// The client reads to the end of its pipes, which comes only once this side has closed them too.
	monitor.CloseFiles(files)
	defer releaseMemory()
	return e.await(ctx)
}

// execution is a command that runs.
type execution struct {
	monitor.ExecRequest
	container *container
	// deadline is zero without a timeout.
	deadline time.Time
	tree     tree
	// inside is its PID in a container with a kernel of its own; else 0.
	inside int
	keeper *keeper
	exited chan unix.WaitStatus
}

// errNotInTime: the command was not even begun when its time was over, as where the container is frozen.
var errNotInTime = errors.New("not begun in time")

func (s *Server) beginInTime(ctx context.Context, e *execution, io runtime.Stdio) error {
	if e.deadline.IsZero() {
		return s.begin(ctx, e, io)
	}
	ctx, cancel := context.WithDeadlineCause(ctx, e.deadline, errNotInTime)
	defer cancel()
	err := s.begin(ctx, e, io)
	if err != nil && errors.Is(context.Cause(ctx), errNotInTime) {
		err = errors.Join(errNotInTime, err)
	}
	return err
}

// begin starts the command, and to await its end.
func (s *Server) begin(ctx context.Context, e *execution, io runtime.Stdio) error {
	if e.Grace < 0 {
		ctx = context.WithoutCancel(ctx) // which may end while the runtime's program has not, but the command runs
	}
	made, err := e.container.runtime.Exec(ctx, e.ID, e.Process, io)
	if err != nil {
		return err
	}
	pid := made.PID
	e.inside = made.Inside
	s.children.own(pid)
	proc, err := openProcess(pid)
	if err != nil {
		e.signalInside(unix.SIGKILL, true)
		_ = unix.Kill(pid, unix.SIGKILL) // it is this process's child, and nobody has reaped it
		return errors.Join(err, s.children.reap(pid))
	}
	e.tree.command = proc
	go func() {
		defer s.children.disown(pid)
		status, _ := proc.wait()
		e.exited <- status
	}()
	if err := e.keeper.handOn(ctx); err != nil {
		e.kill()
		<-e.exited
		return err
	}
	return nil
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

// hangUp ends a command whose client has gone: by SIGHUP, and by force if that does not end it in time. What it leaves behind when it
// ends is told too, and may live on if it ignores that, as with nohup(1). With a negative grace the command goes on.
func (e *execution) hangUp() {
	if e.Grace < 0 {
		go e.keeper.drain(e.exited)
		return
	}
	defer e.keeper.close()
	if e.Grace > 0 {
		e.tree.settle()
		if !e.signalInside(unix.SIGHUP, false) { // to it alone: a shell that loses its child would say so to nobody, and die of SIGPIPE
			_ = e.tree.command.signal(unix.SIGHUP)
			_ = e.tree.command.signal(unix.SIGCONT)
		}
		select {
		case <-e.exited:
			if !e.signalInside(unix.SIGHUP, true) {
				e.tree.hangUp()
			}
			return
		case <-time.After(e.Grace):
		}
	}
	e.kill()
	<-e.exited
}

// kill kills the command with all that it has started.
func (e *execution) kill() {
	e.signalInside(unix.SIGKILL, true)
	e.tree.kill()
}

// insideLimit bounds how long a runtime may take to send a signal.
const insideLimit = 10 * time.Second

// signalInside sends a signal to a command whose container has a kernel of its own; false says that it has not.
func (e *execution) signalInside(sig unix.Signal, all bool) bool {
	sandbox, ok := e.container.runtime.(runtime.Sandbox)
	if !ok || e.inside == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), insideLimit)
	defer cancel()
	if err := sandbox.SignalCommand(ctx, e.ID, e.inside, sig, all); err != nil && !e.container.ends(e.tree.init) {
		logrus.WithError(err).WithFields(logrus.Fields{"container": e.ID, "signal": sig}).Warn("a command may not have got its signal")
	}
	return true
}

func (e *execution) await(ctx context.Context) (*monitor.ExecResponse, error) {
	var expired <-chan time.Time
	if !e.deadline.IsZero() {
		timer := time.NewTimer(time.Until(e.deadline))
		defer timer.Stop()
		expired = timer.C
	}
	gone := e.container.gone
	resp := &monitor.ExecResponse{}
	for {
		select {
		case status := <-e.exited:
			e.keeper.close()
			resp.ExitCode = exitCode(status)
			killed := status.Signaled() && status.Signal() == unix.SIGKILL || e.inside != 0 && status.ExitStatus() != 0
			if !resp.TimedOut && killed && e.container.ends(e.tree.init) {
				resp.ContainerEnded, resp.ExitCode = true, 128+int(unix.SIGKILL)
			}
			return resp, nil
		case <-expired:
			resp.TimedOut, expired = true, nil
			e.kill()
		case <-gone:
			resp.ContainerEnded, gone = true, nil
			e.tree.kill()
		case <-ctx.Done():
			e.hangUp()
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
		st, ok := procfs.Read(init)
		return !ok || st.Ending()
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
