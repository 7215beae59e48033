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
	ended, err := Detach(c.Log, c.Cgroup, c.Binary, "-socket", c.Socket, "-state", c.StateDir, "-log", c.Log, "-log-level", c.LogLevel)
	if err != nil {
		return err
	}
	return await(ctx, client, c, ended)
}

// Detach starts a program in a session and a cgroup of its own, with nothing inherited but the log file for its output. The channel
// gets what it ended with.
func Detach(logFile, cgroupPath, program string, args ...string) (ended <-chan error, err error) {
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
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	return exited, nil
}

func await(ctx context.Context, client *monitor.Client, c Config, ended <-chan error) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		info, err := client.Info(ctx)
		if err == nil {
			logrus.WithFields(logrus.Fields{"pid": info.PID, "version": info.Version}).Info("crimonitor is started")
			return nil
		}
		if !errors.Is(err, monitor.ErrUnavailable) {
			return err
		}
		select {
		case err := <-ended:
			return fmt.Errorf("crimonitor ended at once (%w); %s tells why", err, c.Log)
		case <-ctx.Done():
			return fmt.Errorf("crimonitor does not answer on %s: %w", c.Socket, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}
