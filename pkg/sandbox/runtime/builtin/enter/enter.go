// Package enter runs commands in running containers. It executes the calling program itself, which becomes the command in C code
// before its Go runtime begins (enter.c): a probe a second in each of a hundred containers must not cost a Go program's start each.
//
// The caller's binary is executed from a sealed copy, see New.
package enter

/*
#cgo CFLAGS: -Wall -Wextra -O2
#include "enter.h"
*/
import "C"

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
)

// Namespaces are those that a command enters, all that the init process of a container is in but the user namespace: one that it
// shares with the caller does no harm.
const Namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// Command is what is run, and as whom.
type Command struct {
	// Init is a pidfd of the container's init process, the caller's.
	Init *os.File
	// Cgroups are the directories of the container's cgroups, one in each hierarchy; if Unified, the one of cgroup v2.
	Cgroups []string
	Unified bool
	// Args has the program, which is looked for in the PATH of Env, if it has no slash. Env gets HOME from the container's /etc/passwd
	// if it has none.
	Args, Env []string
	// Cwd is absolute, in the container.
	Cwd      string
	UID, GID uint32
	Groups   []uint32
	// Capabilities are nil for those of the caller.
	Capabilities *Capabilities
	Rlimits      []configs.Rlimit
	// NoNewPrivileges is that of prctl(2).
	NoNewPrivileges bool
	// Filter is nil for none.
	Filter *Filter
	// AppArmorProfile and SELinuxLabel are empty for none; at most one of them is not.
	AppArmorProfile, SELinuxLabel string
	// Keyring is the name of the session keyring that it joins, empty: it keeps the caller's.
	Keyring string
	// Nil: the caller's.
	Umask, Personality *uint32
	OOMScoreAdj        *int
	// Stdio are stdin, stdout and stderr, the caller's.
	Stdio [3]*os.File
}

// Capabilities are the sets of a process, bits by their numbers, see capabilities(7).
type Capabilities struct{ Bounding, Effective, Permitted, Inheritable, Ambient uint64 }

// Error says why a command did not start.
type Error struct {
	Program string
	// What the process was about; empty: to execute the program.
	What  string
	Errno syscall.Errno
}

func (e *Error) Error() string {
	switch e.What {
	case "":
		return fmt.Sprintf("exec: %q: %v", e.Program, e.Errno)
	case notFound:
		return fmt.Sprintf("exec: %q: executable file not found in $PATH", e.Program)
	}
	return fmt.Sprintf("exec: %q: cannot %s: %v", e.Program, e.What, e.Errno)
}

func (e *Error) Unwrap() []error {
	if e.What == joinCgroup {
		return []error{e.Errno, ErrCgroup}
	}
	return []error{e.Errno}
}

// What enter.c says, where it matters here.
const (
	notFound   = "find it in PATH"
	joinCgroup = "join its cgroup"
)

// ErrCgroup says that the kernel does not let the command into its cgroup.
var ErrCgroup = errors.New("cannot join the container's cgroup")

// Enterer starts commands.
type Enterer struct{ exe func() (*os.File, error) }

// New returns an Enterer. dir is a directory that is there when it is first used, and stays.
//
// The binary that becomes the command is visible in the container for a moment. It is a read-only view, made once, through which
// the caller's own file cannot be reached (CVE-2019-5736).
func New(dir string) *Enterer {
	return &Enterer{exe: sync.OnceValues(func() (*os.File, error) { return exeseal.CloneSelfExe(dir) })}
}

// Supported tells whether the kernel has close_range(2) (Linux 5.9), the youngest of what enter.c needs: namespaces are entered by a
// pidfd since 5.8. It asks for an empty range.
var Supported = sync.OnceValue(func() bool { return unix.CloseRange(^uint(0), ^uint(0), 0) == nil })

// frame is what enter.c tells, a struct frame.
type frame struct {
	PID, Errno int32
	What       [56]byte
}

var frameSize = binary.Size(frame{})

// Start runs a command and returns once it is executed. It is a child of the calling process, whose business it is to reap it; the
// PID is on the node. When ctx ends before that, the process is killed. An error of the command's own is an *Error.
func (e *Enterer) Start(ctx context.Context, c *Command) (pid int, err error) {
	exe, err := e.exe()
	if err != nil {
		return 0, fmt.Errorf("seal the binary: %w", err)
	}
	requestR, requestW, err := runtime.NewPipe("request", runtime.WriteEnd)
	if err != nil {
		return 0, err
	}
	defer requestW.Close()
	statusR, statusW, err := runtime.NewPipe("status", runtime.ReadEnd)
	if err != nil {
		_ = requestR.Close()
		return 0, err
	}
	defer statusR.Close()
	files := []uintptr{c.Stdio[0].Fd(), c.Stdio[1].Fd(), c.Stdio[2].Fd(), requestR.Fd(), statusW.Fd(), c.Init.Fd(), exe.Fd()}
	first, inside, err := c.fork(files)
	_ = requestR.Close()
	_ = statusW.Close()
	if err != nil {
		return 0, err
	}
	s := &start{first: first, program: c.Args[0], status: statusR}
	stop := context.AfterFunc(ctx, func() {
		_ = requestW.SetDeadline(time.Unix(1, 0))
		_ = statusR.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	if _, err := requestW.Write(c.encode(inside)); err != nil && !errors.Is(err, unix.EPIPE) { // then it says why
		return 0, s.giveUp(ctx, err)
	}
	_ = requestW.Close()
	return s.await(ctx)
}

// fork executes the last of files. inside: it is in the container's cgroup.
func (c *Command) fork(files []uintptr) (pid int, inside bool, err error) {
	attr := &syscall.ProcAttr{Files: files, Env: []string{C.ENTER_VARIABLE + "=" + C.ENTER_COMMAND}}
	if c.Unified && len(c.Cgroups) == 1 {
		// To be born in a cgroup is much faster than to join it.
		if dir := unfrozen(c.Cgroups[0]); dir != nil {
			defer dir.Close()
			inside = true
			attr.Sys = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		}
	}
	// At its own number another file may be by then (https://go.dev/issue/61751).
	pid, err = syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", len(files)-1), []string{"crimonitor"}, attr)
	switch {
	case err != nil && inside:
		return 0, false, fmt.Errorf("execute crimonitor: %w: %w", ErrCgroup, err)
	case err != nil:
		return 0, false, fmt.Errorf("execute crimonitor: %w", err)
	}
	return pid, inside, nil
}

// unfrozen opens the directory of a cgroup, or returns nil if it is frozen: what is born there would not come so far as to execute
// anything, and hold up all that this process executes.
func unfrozen(path string) *os.File {
	frozen, err := os.ReadFile(filepath.Join(path, "cgroup.freeze"))
	if err != nil || strings.TrimSpace(string(frozen)) != "0" {
		return nil
	}
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return dir
}

// start is a command that is being started.
type start struct {
	first, second int // processes; 0: not known
	program       string
	status        *os.File
}

// await reads what the processes tell until they tell no more.
func (s *start) await(ctx context.Context) (int, error) {
	var failed *Error
	for data := make([]byte, frameSize); ; {
		var f frame
		// A frame comes as a whole, see pipe(7).
		n, err := s.status.Read(data)
		if n == 0 && err != nil {
			if os.IsTimeout(err) {
				return 0, s.giveUp(ctx, err)
			}
			break
		}
		if _, err := binary.Decode(data[:n], binary.NativeEndian, &f); err != nil {
			return 0, s.giveUp(ctx, err)
		}
		if f.PID != 0 {
			s.second = int(f.PID)
			continue
		}
		what, _, _ := strings.Cut(string(f.What[:]), "\x00")
		failed = &Error{Program: s.program, What: what, Errno: syscall.Errno(f.Errno)}
	}
	status := reap(s.first)
	switch {
	case failed != nil:
		if s.second != 0 {
			reap(s.second)
		}
		return 0, failed
	case s.second == 0:
		return 0, fmt.Errorf("exec: %q: the process that enters the container has ended (%s): the container may be out of memory",
			s.program, describe(status))
	}
	return s.second, nil
}

// giveUp kills the processes. They are reaped in the background: one that a frozen cgroup holds ends when that is thawed.
func (s *start) giveUp(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	for _, pid := range []int{s.first, s.second} {
		if pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
			go reap(pid)
		}
	}
	return fmt.Errorf("start %q in the container: %w", s.program, err)
}

func reap(pid int) unix.WaitStatus {
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &status, 0, nil); err != unix.EINTR {
			return status
		}
	}
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return status.Signal().String()
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}

// header is a struct enter_header.
type header struct {
	Capabilities
	Namespaces, Flags                   uint32
	UID, GID, Umask, Personality        uint32
	OOMScoreAdj                         int32
	FilterFlags, FilterLength           uint32
	Rlimits, Groups, Cgroups, Args, Env uint32
}

// encode makes the request, see enter.h, of a process that is inside the cgroup or not.
func (c *Command) encode(inside bool) []byte {
	env, cgroups := environment(c.Env), c.Cgroups
	if inside {
		cgroups = nil
	}
	h := header{
		Namespaces: Namespaces, UID: c.UID, GID: c.GID,
		Rlimits: count(c.Rlimits), Groups: count(c.Groups), Cgroups: count(cgroups), Args: count(c.Args), Env: count(env),
	}
	if caps := c.Capabilities; caps != nil {
		h.Flags |= C.ENTER_CAPABILITIES
		h.Capabilities = *caps
	}
	if c.NoNewPrivileges {
		h.Flags |= C.ENTER_NO_NEW_PRIVILEGES
	}
	if c.Umask != nil {
		h.Flags |= C.ENTER_UMASK
		h.Umask = *c.Umask
	}
	if c.Personality != nil {
		h.Flags |= C.ENTER_PERSONALITY
		h.Personality = *c.Personality
	}
	if c.OOMScoreAdj != nil {
		h.Flags |= C.ENTER_OOM_SCORE_ADJ
		h.OOMScoreAdj = int32(*c.OOMScoreAdj)
	}
	var filter []byte
	if c.Filter != nil {
		filter = c.Filter.program
		h.FilterFlags, h.FilterLength = c.Filter.flags, uint32(len(filter)/instructionSize)
	}
	data := must(binary.Append(nil, binary.NativeEndian, h))
	for _, l := range c.Rlimits {
		data = must(binary.Append(data, binary.NativeEndian, [3]uint64{l.Soft, l.Hard, uint64(l.Type)}))
	}
	data = append(data, filter...)
	data = must(binary.Append(data, binary.NativeEndian, c.Groups))
	attribute, label := c.label()
	for _, list := range [][]string{{c.Cwd, c.Keyring, c.SELinuxLabel, attribute, label}, cgroups, c.Args, env} {
		for _, s := range list {
			data = append(append(data, s...), 0)
		}
	}
	return data
}

// must is for what cannot fail: the types are of fixed sizes.
func must(data []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return data
}

func count[T any](list []T) uint32 { return uint32(len(list)) }

// label returns the file below /proc that takes the label of the command, and what is written to it.
func (c *Command) label() (attribute, value string) {
	switch {
	case c.SELinuxLabel != "":
		return "thread-self/attr/exec", c.SELinuxLabel
	case c.AppArmorProfile != "":
		return appArmorAttribute(), "exec " + c.AppArmorProfile
	}
	return "", ""
}

// appArmorAttribute: only since Linux 5.8 AppArmor has files of its own, beside those that another security module may have.
var appArmorAttribute = sync.OnceValue(func() string {
	const own = "thread-self/attr/apparmor/exec"
	if _, err := os.Stat("/proc/" + own); err != nil {
		return "thread-self/attr/exec"
	}
	return own
})

// environment leaves the last of variables with the same name, and no empty HOME.
func environment(env []string) []string {
	last := make(map[string]int, len(env))
	name := func(variable string) string { n, _, _ := strings.Cut(variable, "="); return n }
	for i, v := range env {
		last[name(v)] = i
	}
	out := make([]string, 0, len(env))
	for i, v := range env {
		if last[name(v)] == i && v != "HOME=" {
			out = append(out, v)
		}
	}
	return out
}
