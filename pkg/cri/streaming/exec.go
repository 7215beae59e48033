package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"criserver/pkg/sandbox/monitor"
)

// runtime serves sessions. The contexts end when the client has gone.
type runtime struct {
	monitor *monitor.Client
	grace   time.Duration
}

// exec runs a command for a client. Its error has the exit code, if the command has ended with another than 0.
func (r *runtime) exec(ctx context.Context, op Exec, s streams) error {
	req := monitor.ExecRequest{ID: op.Container, Process: op.Process, Grace: r.grace}
	run := r.execPipes
	if op.TTY {
		run = r.execTerminal
	}
	end, err := run(ctx, req, s)
	switch {
	case err != nil && ctx.Err() != nil:
		return errors.New("the client has gone")
	case err != nil:
		return err
	case end.ContainerEnded:
		return fmt.Errorf("container %s has stopped, and the command with it", op.Container)
	case end.ExitCode != 0:
		return utilexec.CodeExitError{Code: end.ExitCode, Err: fmt.Errorf("command terminated with exit code %d", end.ExitCode)}
	}
	return nil
}

// streams are the client's; nil are those that it does not want.
type streams struct {
	in          io.Reader
	out, errOut io.Writer
	resize      <-chan remotecommand.TerminalSize
}

func (r *runtime) execPipes(ctx context.Context, req monitor.ExecRequest, s streams) (monitor.ExecResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdin, feed, err := openInput(s.in)
	if err != nil {
		return monitor.ExecResponse{}, err
	}
	defer stdin.Close()
	stdout, err := newOutput(cancel, s.out)
	if err != nil {
		return monitor.ExecResponse{}, err
	}
	defer stdout.close()
	stderr, err := newOutput(cancel, s.errOut)
	if err != nil {
		return monitor.ExecResponse{}, err
	}
	defer stderr.close()
	if feed != nil {
		defer feed.Close() // a descendant may hold the other end, and never read
		go func() {
			_, _ = io.Copy(feed, s.in) // to its end, or that of the session
			_ = feed.Close()
		}()
	}
	end, err := r.monitor.ExecStreams(ctx, req, stdin, stdout.w, stderr.w)
	stdout.finish(ctx)
	stderr.finish(ctx)
	return end, err
}

// openInput returns what a process reads from, and where its client's input is to be written; nil if there is no client's.
func openInput(in io.Reader) (r, feed *os.File, err error) {
	if in == nil {
		r, err = os.Open(os.DevNull)
		return r, nil, err
	}
	if r, feed, err = os.Pipe(); err != nil {
		return nil, nil, fmt.Errorf("make input pipe: %w", err)
	}
	return r, feed, nil
}

func (r *runtime) execTerminal(ctx context.Context, req monitor.ExecRequest, s streams) (monitor.ExecResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	console, err := monitor.NewConsole()
	if err != nil {
		return monitor.ExecResponse{}, err
	}
	defer console.Close()
	receiving, stopReceiving := context.WithCancel(ctx)
	defer stopReceiving()
	terminal := make(chan *output, 1)
	go func() {
		defer close(terminal)
		master, err := console.Receive(receiving)
		if err != nil {
			return // the call tells why there is none
		}
		go follow(master, s.resize)
		if s.in != nil {
			go func() { _, _ = io.Copy(master, s.in) }()
		}
		terminal <- copyOutput(master, cancel, s.out)
	}()
	end, err := r.monitor.ExecTerminal(ctx, req, console.Socket)
	stopReceiving()
	if out, ok := <-terminal; ok {
		out.finish(ctx)
		out.close()
	}
	return end, err
}

// follow gives a terminal the sizes of the client's, until there are no more of them.
func follow(master *os.File, sizes <-chan remotecommand.TerminalSize) {
	for size := range sizes {
		raw, err := master.SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Control(func(fd uintptr) { // a terminal that has gone has no size
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
		})
	}
}
