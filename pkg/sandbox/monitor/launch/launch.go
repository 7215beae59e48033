// Package launch starts processes that outlive this one, crimonitor above all.
package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/monitor"
)

// Config tells how to reach crimonitor, and how to start it.
type Config struct {
	// Binary is the absolute path of the crimonitor program.
	Binary string
	// Socket it answers on, StateDir for its containers, Log for its own messages at LogLevel.
	Socket, StateDir, Log, LogLevel string
	// Cgroup it is moved to, away from this process's own.
	Cgroup string
}

// limit bounds the start of crimonitor.
const limit = 20 * time.Second

// Ensure starts crimonitor unless one answers. It is detached: a session and a cgroup of its own, nothing
// inherited, so that it outlives this process in every way that this process may end.
func Ensure(ctx context.Context, c Config) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client := monitor.NewClient(c.Socket)
	info, err := client.Info(ctx)
	if err == nil {
		logrus.WithFields(logrus.Fields{"pid": info.PID, "version": info.Version}).Info("crimonitor answers")
		return nil
	}
	if !errors.Is(err, monitor.ErrUnavailable) {
		return err
	}
	p, err := Detach(c.Log, c.Cgroup, c.Binary, "-socket", c.Socket, "-state", c.StateDir, "-log", c.Log, "-log-level", c.LogLevel)
	if err != nil {
		return err
	}
	return p.Await(ctx, func(ctx context.Context) (bool, error) {
		info, err := client.Info(ctx)
		if err == nil {
			logrus.WithFields(logrus.Fields{"pid": info.PID, "version": info.Version}).Info("crimonitor is started")
		}
		return errors.Is(err, monitor.ErrUnavailable), err
	})
}

// Program is one that Detach has started.
type Program struct {
	name, log string
	ended     <-chan error // gets what it ended with
}

// Detach starts a program in a session and a cgroup of its own, with nothing inherited but the log file for its output.
func Detach(logFile, cgroupPath, program string, args ...string) (*Program, error) {
	name := filepath.Base(program)
	out, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := cgroup.Enter(cgroupPath, cmd.Process.Pid); err != nil {
		logrus.WithError(err).WithField("pid", cmd.Process.Pid).
			Warnf("%s shares criserver's cgroup: a service manager may end them together", name)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return &Program{name, logFile, ended}, nil
}

// askEvery is how long an answer is waited for at most before it is asked again.
const askEvery = 10 * time.Millisecond

// Await returns once the program answers: when ask has no error. An error of ask is final unless it says to ask again; that the
// program has ended, or ctx, is too.
func (p *Program) Await(ctx context.Context, ask func(context.Context) (again bool, err error)) error {
	for wait := time.Millisecond; ; wait = min(2*wait, askEvery) {
		again, err := ask(ctx)
		if err == nil || !again {
			return err
		}
		select {
		case err := <-p.ended:
			return fmt.Errorf("%s ended at once (%w); %s tells why", p.name, err, p.log)
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w: %w", p.name, context.Cause(ctx), err)
		case <-time.After(wait):
		}
	}
}
