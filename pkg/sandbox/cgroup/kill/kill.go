// Package kill ends all processes of a cgroup, and tells of those that do not end. It imports little: crimonitor has it too.
package kill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// freezeWait bounds how long processes may take to stop before they are killed. One in uninterruptible sleep does not stop
// before it is killed either; the others do, within a millisecond or so.
const freezeWait = 100 * time.Millisecond

// Dir is the directory by which the cgroup at path is killed: the one of the freezer on cgroup v1, else the only one.
func Dir(path string) string { return hierarchy.Dir("freezer", path) }

// Tree sends SIGKILL to every process in the cgroup directory, see Dir, and below. It does not wait for their ends. Frozen
// processes are let go, as they would not end otherwise (v1), and none is born unseen: cgroup v2 kills as a whole, on v1 all
// are stopped first. A cgroup that is gone is no error.
func Tree(dir string) error {
	err := write(dir, "cgroup.kill", "1")
	if err == nil || gone(dir) {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	freeze(dir)
	return errors.Join(signalAll(dir), thaw(dir))
}

// All kills the processes of the cgroup at path, and below, until there are none. The error names those that do not end. One that is gone
// is no error.
func All(ctx context.Context, path string) error {
	if filepath.Join("/", path) == "/" {
		return nil // that of the machine
	}
	const pause = 20 * time.Millisecond
	for dir := Dir(path); ; {
		holders := Holders(dir)
		if holders == "" {
			return nil
		}
		if err := Tree(dir); err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("killed, but it does not end: %s: %w", holders, context.Cause(ctx))
		}
	}
}

func gone(dir string) bool {
	_, err := os.Stat(dir)
	return errors.Is(err, fs.ErrNotExist)
}

// freeze stops the processes as far as they stop in time: by cgroup.freeze of a v2 before Linux 5.14, which has no cgroup.kill, or
// by the v1 freezer.
func freeze(dir string) {
	state, frozen := "freezer.state", []byte("FROZEN")
	if write(dir, state, "FROZEN") != nil {
		state, frozen = "cgroup.events", []byte("frozen 1")
		if write(dir, "cgroup.freeze", "1") != nil {
			return
		}
	}
	for deadline := time.Now().Add(freezeWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if data, err := os.ReadFile(filepath.Join(dir, state)); err != nil || bytes.Contains(data, frozen) {
			return
		}
	}
}

// thaw lets all go, also what was frozen below.
func thaw(dir string) error {
	return walk(dir, func(dir string) error {
		err := write(dir, "freezer.state", "THAWED")
		if errors.Is(err, fs.ErrNotExist) {
			err = write(dir, "cgroup.freeze", "0")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("thaw cgroup: %w", err)
		}
		return nil
	})
}

func signalAll(dir string) error {
	return walk(dir, func(dir string) error {
		pids, err := pidsIn(dir)
		for _, pid := range pids {
			err = errors.Join(err, signal(dir, pid))
		}
		return err
	})
}

// signal kills a process if it is still the one of the cgroup: its PID may be another's by now.
func signal(dir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(fd)
	if !member(dir, pid) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// member tells whether a process is in the cgroup directory itself, or was when the call was made.
func member(dir string, pid int) bool {
	return inGroup(pid, func(controllers, path string) bool {
		return path != "/" && (dir == filepath.Join(hierarchy.Mountpoint, path) || dir == filepath.Join(hierarchy.Mountpoint, controllers, path))
	})
}

// Within tells whether a process is in the cgroup at path, in any hierarchy, or below it, or was when the call was made.
// The root is no cgroup to be in, nor is what the kernel would not call so.
func Within(path string, pid int) bool {
	return path != "/" && filepath.IsAbs(path) && filepath.Clean(path) == path && inGroup(pid, func(_, own string) bool { return own == path || strings.HasPrefix(own, path+"/") })
}

// inGroup tells whether one of the cgroups that a process is in is the one that is meant.
func inGroup(pid int, meant func(controllers, path string) bool) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		// hierarchy:controllers:path, see cgroups(7)
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 && meant(f[1], f[2]) {
			return true
		}
	}
	return false
}

// Pids lists the processes in the cgroup directory and below. A cgroup that is gone has none.
func Pids(dir string) ([]int, error) {
	var all []int
	err := walk(dir, func(dir string) error {
		pids, err := pidsIn(dir)
		all = append(all, pids...)
		return err
	})
	return all, err
}

func pidsIn(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	// EOPNOTSUPP: a threaded cgroup, whose processes are in the one above (cgroup-v2.rst).
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup: %w", err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 { // 0 is one of another PID namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// walk calls fn for the directory and all below, and goes past errors.
func walk(dir string, fn func(dir string) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{fn(dir)}
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, walk(filepath.Join(dir, e.Name()), fn))
		}
	}
	return errors.Join(errs...)
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0) // never created: a cgroup's files are the kernel's
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}
