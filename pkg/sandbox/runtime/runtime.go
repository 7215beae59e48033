// Package runtime declares what crimonitor asks of an OCI runtime. Implementations run inside crimonitor, the
// parent (directly or as subreaper) of every process that they make: whoever calls them reaps those processes.
package runtime

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrNotFound says that the runtime has no container of that ID.
var ErrNotFound = errors.New("container not found in the runtime")

// Stdio is what a process reads and writes. The files stay the caller's, who closes them once the process runs.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	// Console takes the place of the three for a process with a terminal: a Unix socket to which the runtime sends the
	// terminal's master (SCM_RIGHTS).
	Console *os.File
}

// Streams are the three for what takes readers and writers: a nil file is a nil interface.
func (s Stdio) Streams() (stdin io.Reader, stdout, stderr io.Writer) {
	if s.Stdin != nil {
		stdin = s.Stdin
	}
	if s.Stdout != nil {
		stdout = s.Stdout
	}
	if s.Stderr != nil {
		stderr = s.Stderr
	}
	return stdin, stdout, stderr
}

// Runtime runs OCI bundles. All calls for one ID come one after the other, except Signal.
type Runtime interface {
	// Create sets the container of bundle up to the point where its init process waits for Start; every mount,
	// cgroup and namespace error comes from here. On error nothing is left. The PID is on the host.
	Create(ctx context.Context, id, bundle string, io Stdio) (pid int, err error)
	// Start executes the workload of a created container.
	Start(ctx context.Context, id string) error
	// Exec runs a further process in a running container. When ctx ends before that, it gives up and nothing is left of the process, or
	// it goes on all the same.
	Exec(ctx context.Context, id string, p *specs.Process, io Stdio) (Process, error)
	// Kill sends SIGKILL to every process of the container.
	Kill(ctx context.Context, id string) error
	// OOMKilled tells whether the kernel has killed a process of the container for want of memory.
	OOMKilled(ctx context.Context, id string) (bool, error)
	// Delete removes all that is left of a container whose init process has ended: processes, cgroup, state.
	// bundle tells the cgroup where the state was lost. It is idempotent.
	Delete(ctx context.Context, id, bundle string) error
}

// Process is a command in a container.
type Process struct {
	// PID is on the host.
	PID int
	// Inside is, in a Sandbox, the command's PID there: PID is then that of a program which stands for it. Else it is 0.
	Inside int
}

// Sandbox is a Runtime whose containers have a kernel of their own: what runs in them is no process of the host, and its signals go by
// way of the runtime. The init process stands for the whole container, and hands on the signals that it gets.
type Sandbox interface {
	// SignalCommand sends a signal to a command by its PID inside; all: and to what it has started, as far as that is its descendant
	// or in a process group with one. One that has ended is no error. It may be called beside other calls.
	SignalCommand(ctx context.Context, id string, inside int, sig unix.Signal, all bool) error
}

// Checkpointer is a Runtime that can write down the processes of a container, and make processes of what was written down.
// CRIU does the work (https://criu.org).
type Checkpointer interface {
	// Checkpoint writes the state of the processes of a running container into images, which then go on. When ctx ends it is
	// given up: the processes go on, thawed if they were frozen before, and the images are of no use.
	Checkpoint(ctx context.Context, id string, to Images) error
	// Restore makes a container of bundle whose processes go on from images: Create and Start in one. The PID is on the host.
	Restore(ctx context.Context, id, bundle string, from Images, io Stdio) (pid int, err error)
}

// Images are the files of a checkpoint, and the programs that make and read them. All paths are absolute.
type Images struct {
	// Dir has the state of processes, Work the log (dump.log, restore.log) and the statistics. Both are there.
	Dir  string `json:"dir"`
	Work string `json:"work"`
	// CRIU is the program criu. Its base name is "criu": runtimes look for that in PATH.
	CRIU string `json:"criu"`
	// Helper is the program that calls it for the built-in runtime, see package criu.
	Helper string `json:"helper,omitempty"`
}

// SearchPath is where programs that are executed for containers look for others: the PATH of this process, or the usual one if it has
// none.
func SearchPath() string {
	return cmp.Or(os.Getenv("PATH"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

// Command is an OCI runtime that is a program of its own, with the command line of runc.
type Command struct {
	// Path is the program. Root is the directory for its state (--root), which nobody else uses.
	Path string `json:"path"`
	Root string `json:"root"`
	// Args are further options of the program itself, which come before the name of the operation.
	Args []string `json:"args,omitempty"`
	// Env are variables ("NAME=value") that the program gets beside PATH.
	Env []string `json:"env,omitempty"`
	// Sandbox: its containers have a kernel of their own, see Sandbox. It has the command line of runsc for that.
	Sandbox bool `json:"sandbox,omitempty"`
}
