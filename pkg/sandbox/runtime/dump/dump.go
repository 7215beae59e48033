// Package dump runs the programs that checkpoint and restore containers: what they have in common is criu below them, which must
// be ended with care, since it holds the processes of a container in its hands.
package dump

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
)

// Logs of criu in Images.Work.
const (
	DumpLog    = "dump.log"
	RestoreLog = "restore.log"
)

// Result is what the helper of the built-in runtime answers, as JSON, on ResultFD; see package criu.
type Result struct {
	// PID is the init of a restored container.
	PID int `json:"pid,omitempty"`
	// Error is why it has failed.
	Error string `json:"error,omitempty"`
}

// Descriptors of the helper beside the standard ones: the answer, and the socket for a restored terminal.
const (
	ResultFD  = 3
	ConsoleFD = 4
)

const (
	// partGrace is how long criu has to let go of the processes when it is given up. Killed while it makes a process execute
	// system calls for it, it would leave that process broken.
	partGrace = 10 * time.Second
	partPoll  = 10 * time.Millisecond
)

// Path is the variable PATH by which a program finds criu.
func Path(images runtime.Images) string {
	return "PATH=" + filepath.Dir(images.CRIU) + ":" + runtime.SearchPath()
}

// OwnMounts gives a program a mount namespace of its own, which it must call Slave in first: what it mounts for a restore, on the
// root file system of the container among others, goes with it, also if it is killed.
func OwnMounts() *syscall.SysProcAttr { return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS} }

// Slave keeps what is mounted in this mount namespace to itself. What others mount comes in, and on to the restored container.
func Slave() error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts from the other namespaces: %w", err)
	}
	return nil
}

// Run executes a program that calls criu, in a process group of its own, and waits for both. cmd is of ctx (exec.CommandContext):
// when that ends the program is killed, and criu, which finds nobody at the other end of its socket then, is given time to part
// from the container by itself.
func Run(ctx context.Context, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	err := cmd.Run()
	if ctx.Err() == nil || cmd.Process == nil {
		return err
	}
	part(cmd.Process.Pid)
	return context.Cause(ctx)
}

// part waits until a process group is empty, and kills what is left of it after partGrace. What does not end then either, in
// uninterruptible sleep, is left.
func part(group int) {
	start, killed := time.Now(), false
	for ; unix.Kill(-group, 0) == nil && time.Since(start) < 2*partGrace; time.Sleep(partPoll) {
		reap(group)
		if !killed && time.Since(start) > partGrace {
			killed = true
			_ = unix.Kill(-group, unix.SIGKILL)
		}
	}
	reap(group)
}

// reap takes the orphans of a process group: they are children of this process, as a subreaper, and stay members until they are
// reaped.
func reap(group int) {
	for {
		if pid, err := unix.Wait4(-group, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
			return
		}
	}
}

// maxReason is how much of criu's log is told of.
const maxReason = 3

// Reason is why criu has failed, in its own words: the first errors of its log, "" if there are none. What comes after the first
// ones is mostly what became of them.
func Reason(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	var reasons []string
	lines := bufio.NewScanner(f)
	for lines.Scan() && len(reasons) < maxReason {
		// (00.015381) Error (criu/sk-inet.c:196): inet: Connected TCP socket, consider using --tcp-established option.
		_, text, found := strings.Cut(lines.Text(), "Error (")
		if !found {
			continue
		}
		if _, said, ok := strings.Cut(text, "): "); ok {
			text = said
		}
		reasons = append(reasons, strings.TrimSuffix(strings.TrimSpace(text), "."))
	}
	return strings.Join(reasons, "; ")
}

// Undo is what a checkpoint that has failed with err comes to: criu's reason is added to the error, and if ctx has ended the container's
// cgroup is thawed, since whoever has frozen it may not be there any more. err may be nil.
func Undo(ctx context.Context, err error, to runtime.Images, cgroup func() (cgroups.Manager, error)) error {
	err = Explain(err, filepath.Join(to.Work, DumpLog))
	if err == nil || ctx.Err() == nil {
		return err
	}
	m, cerr := cgroup()
	if cerr == nil {
		cerr = m.Freeze(cgroups.Thawed)
	}
	return errors.Join(err, cerr)
}

// Explain adds criu's reason to an error.
func Explain(err error, log string) error {
	if err == nil {
		return nil
	}
	if reason := Reason(log); reason != "" {
		return fmt.Errorf("%w: criu says: %s", err, reason)
	}
	return err
}
