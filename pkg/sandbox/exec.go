package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
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
	if len(command) == 0 {
		return none, fmt.Errorf("cmd: %w: empty", ErrInvalid)
	}
	st, err := s.Container(id)
	if err != nil {
		return none, err
	}
	if st.Phase != ContainerRunning {
		return none, fmt.Errorf("container %s is %s, not running: %w", id, st.Phase, ErrState)
	}
	process, err := s.processOf(st.ID)
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
	stdout, err := newCapture()
	if err != nil {
		return none, err
	}
	defer stdout.close()
	stderr, err := newCapture()
	if err != nil {
		return none, err
	}
	defer stderr.close()
	code, err := s.monitor.Exec(ctx, monitor.ExecRequest{ID: st.ID, Process: process, Timeout: timeout},
		stdin, stdout.w, stderr.w)
	switch {
	case errors.Is(err, monitor.ErrTimeout):
		return none, fmt.Errorf("exec %q in container %s: %w after %s", command, id, ErrTimeout, timeout)
	case errors.Is(err, monitor.ErrNotRunning), errors.Is(err, monitor.ErrNotFound):
		return none, fmt.Errorf("exec in container %s: %w: %w", id, ErrState, err)
	case err != nil:
		return none, fmt.Errorf("exec %q in container %s: %w", command, id, err)
	}
	return ExecResult{Stdout: stdout.finish(), Stderr: stderr.finish(), ExitCode: code}, nil
}

// capture reads a stream of a command through a pipe.
type capture struct {
	r, w *os.File
	buf  bytes.Buffer
	done chan struct{}
}

func newCapture() (*capture, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make output pipe: %w", err)
	}
	c := &capture{r: r, w: w, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		chunk := make([]byte, 32<<10)
		for {
			n, err := r.Read(chunk)
			c.keep(chunk[:n])
			if err != nil {
				return
			}
		}
	}()
	return c, nil
}

func (c *capture) keep(data []byte) {
	c.buf.Write(data[:min(len(data), MaxExecOutput-c.buf.Len())])
}

// finish returns what the command printed, once it has ended: all of that is in the pipe by now, but the end of the
// stream comes only when the last process that holds the pipe has ended too.
func (c *capture) finish() []byte {
	_ = c.w.Close()
	_ = c.r.SetReadDeadline(time.Unix(1, 0))
	<-c.done
	_ = c.r.SetReadDeadline(time.Time{})
	raw, err := c.r.SyscallConn()
	if err != nil {
		return c.buf.Bytes()
	}
	chunk := make([]byte, 32<<10)
	_ = raw.Read(func(fd uintptr) bool {
		for range MaxExecOutput / len(chunk) { // a descendant may go on printing
			n, err := unix.Read(int(fd), chunk)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 || err != nil {
				break
			}
			c.keep(chunk[:n])
		}
		return true
	})
	return c.buf.Bytes()
}

func (c *capture) close() {
	_ = c.w.Close()
	_ = c.r.Close()
}

// ReopenLog goes on in a new file at the container's log path. ErrState: the container does not run.
func (s *Service) ReopenLog(ctx context.Context, id string) error {
	st, err := s.Container(id)
	if err != nil {
		return err
	}
	if st.Phase != ContainerRunning {
		return fmt.Errorf("container %s is %s, not running: %w", id, st.Phase, ErrState)
	}
	if err := s.monitor.ReopenLog(ctx, st.ID); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", id, err)
	}
	return nil
}
