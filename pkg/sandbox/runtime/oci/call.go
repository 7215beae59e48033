package oci

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
)

// call is one execution of the runtime's program. Without files in stdio it reads nothing, and what it prints belongs to its
// messages.
type call struct {
	*exec.Cmd
	what     string
	messages *os.File
}

func (r *Runtime) command(ctx context.Context, stdio runtime.Stdio, operation string, args ...string) (*call, error) {
	messages, err := os.CreateTemp(r.dir, "messages-")
	if err != nil {
		return nil, fmt.Errorf("call OCI runtime: %w", err)
	}
	c := &call{what: fmt.Sprintf("OCI runtime %s, %s", r.Command.Path, operation), messages: messages}
	// The runtime opens the file too, and must not be written over.
	if _, err := unix.FcntlInt(messages.Fd(), unix.F_SETFL, unix.O_APPEND); err != nil {
		c.close()
		return nil, fmt.Errorf("call OCI runtime: %w", err)
	}
	options := []string{"--root", r.Command.Root, "--log", messages.Name(), "--log-format", "json"}
	c.Cmd = exec.CommandContext(ctx, r.Command.Path, slices.Concat(options, r.Command.Args, []string{operation}, args)...)
	c.Dir = "/"
	c.Env = append([]string{"PATH=" + runtime.SearchPath()}, r.Command.Env...)
	c.Stdin, c.Stdout, c.Stderr = stdio.Streams()
	c.Stdout, c.Stderr = cmp.Or[io.Writer](c.Stdout, messages), cmp.Or[io.Writer](c.Stderr, messages)
	return c, nil
}

func (c *call) close() {
	_ = c.messages.Close()
	_ = os.Remove(c.messages.Name())
}

// failure makes of what came of the execution an error that has the runtime's own words.
func (c *call) failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", c.what, context.Cause(ctx))
	}
	if said := lastWords(c.messages.Name()); said != "" {
		return fmt.Errorf("%s: %s", c.what, said)
	}
	return fmt.Errorf("%s: %w", c.what, err)
}

// run executes one operation of the runtime and waits for its end.
func (r *Runtime) run(ctx context.Context, limit time.Duration, stdio runtime.Stdio, operation string, args ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("it has not ended in %s: %w", limit, context.DeadlineExceeded))
	defer cancel()
	c, err := r.command(ctx, stdio, operation, args...)
	if err != nil {
		return err
	}
	defer c.close()
	// It is ended with its helpers. A command whose runtime makes no session for it, as crun does, has this one to itself.
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	return c.failure(ctx, c.Run())
}

// maxMessages is how much of a runtime's messages is read, from the end.
const maxMessages = 64 << 10

// lastWords is the last error in a log that a runtime has written, JSON with the keys level and msg on each line, or else
// the last line.
func lastWords(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxMessages {
		_, _ = f.Seek(-maxMessages, io.SeekEnd)
	}
	var failure, last string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxMessages)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		var entry struct{ Level, Msg string }
		switch err := json.Unmarshal([]byte(line), &entry); {
		case line == "":
		case err != nil || entry.Msg == "":
			last = line
		case slices.Contains([]string{"error", "fatal", "panic"}, strings.ToLower(entry.Level)):
			failure = entry.Msg
		default:
			last = entry.Msg
		}
	}
	return cmp.Or(failure, last)
}
