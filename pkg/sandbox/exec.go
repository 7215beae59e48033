package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"criserver/pkg/sandbox/capture"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/want"
)

// MaxExecOutput is how much of stdout and of stderr ExecSync returns; the rest is read and dropped (CVE-2022-1708).
const MaxExecOutput = 16 << 20

// ExecResult is what a command left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int
}

// ExecSync runs a command in a running container and returns when it ends; processes that it leaves behind may live on,
// and hold its output open, without being waited for. timeout 0 is none. ErrTimeout: the command and its descendants
// were killed.
func (s *Service) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (ExecResult, error) {
	var none ExecResult
	if err := want.CheckCommand(command); err != nil {
		return none, err
	}
	st, err := s.running(id)
	if err != nil {
		return none, err
	}
	process, err := s.bundles.Process(st.ID)
	if err != nil {
		return none, err
	}
	process.Args = command
	process.Terminal = false
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return none, err
	}
	defer stdin.Close()
	stdout, err := capture.New(MaxExecOutput)
	if err != nil {
		return none, err
	}
	defer stdout.Close()
	stderr, err := capture.New(MaxExecOutput)
	if err != nil {
		return none, err
	}
	defer stderr.Close()
	code, err := s.monitor.Exec(ctx, monitor.ExecRequest{ID: st.ID, Process: process, Timeout: timeout},
		stdin, stdout.Writer(), stderr.Writer())
	switch {
	case errors.Is(err, monitor.ErrTimeout):
		return none, fmt.Errorf("exec %q in container %s: %w after %s", command, id, ErrTimeout, timeout)
	case errors.Is(err, monitor.ErrNotRunning), errors.Is(err, monitor.ErrNotFound):
		return none, fmt.Errorf("exec in container %s: %w: %w", id, ErrState, err)
	case err != nil:
		return none, fmt.Errorf("exec %q in container %s: %w", command, id, err)
	}
	return ExecResult{Stdout: stdout.Finish(), Stderr: stderr.Finish(), ExitCode: code}, nil
}

// ReopenLog goes on in a new file at the container's log path. ErrState: the container does not run. ErrLogFile.
func (s *Service) ReopenLog(ctx context.Context, id string) error {
	st, err := s.running(id)
	if err != nil {
		return err
	}
	if err := s.monitor.ReopenLog(ctx, st.ID); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", id, err)
	}
	return nil
}
