// Package score writes the oom_score_adj of processes (proc_pid_oom_score_adj(5)). It imports little: crimonitor has it too.
package score

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/procfs"
)

// pauses are before the rounds that must find nothing to do. A child has its parent's score from early in fork(2), and is in the cgroup
// at the end of that only: it may be born with the old score after all that were there have the new one (kernel/fork.c, copy_signal and
// cgroup_post_fork).
var pauses = []time.Duration{5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond}

// SetAll gives all processes of the cgroup at path and below the score, those that are born meanwhile too. One that may not be
// lowered that far, for want of CAP_SYS_RESOURCE, keeps its own. fs.ErrNotExist: there is no process.
func SetAll(path string, score int) error {
	top := kill.Dir(path)
	done := map[int]bool{}
	for quiet := 0; ; quiet++ {
		pids, err := kill.Pids(top)
		if err != nil {
			return fmt.Errorf("list cgroup %s: %w", path, err)
		}
		for _, pid := range pids {
			if done[pid] {
				continue
			}
			done[pid] = true
			did, err := set(pid, score, func() bool { return kill.Within(path, pid) })
			if err != nil {
				return err
			}
			if did {
				quiet = 0
			}
		}
		if len(done) == 0 {
			return fmt.Errorf("cgroup %s has no process: %w", path, fs.ErrNotExist)
		}
		if quiet == len(pauses) {
			return nil
		}
		time.Sleep(pauses[quiet])
	}
}

// SetTree gives a child of this process, which nobody reaps meanwhile, the score, and all that it has made by then.
func SetTree(pid, score int) error {
	changed, err := set(pid, score, func() bool { return true })
	if err != nil || !changed { // what it makes has the score that it has
		return err
	}
	for {
		below, again := children(pid), false
		for _, child := range below {
			did, err := set(child, score, func() bool { return slices.Contains(children(pid), child) })
			if err != nil {
				return err
			}
			again = again || did
		}
		if !again {
			return nil
		}
	}
}

// children are the descendants of a process.
func children(pid int) (all []int) {
	for _, child := range procfs.Children(pid) {
		all = append(append(all, child), children(child)...)
	}
	return all
}

// set gives a process the score, if it still is the one that is meant once a descriptor holds it: its PID may be another's by now. It
// tells whether the process had another.
func set(pid, score int, meant func() bool) (changed bool, err error) {
	dir, err := unix.Open(filepath.Join("/proc", strconv.Itoa(pid)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, nil // it has ended
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, "oom_score_adj", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if ended(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open oom_score_adj of process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "oom_score_adj")
	defer f.Close()
	var buf [16]byte
	n, err := f.Read(buf[:])
	if ended(err) || err == nil && !meant() {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read oom_score_adj of process %d: %w", pid, err)
	}
	wanted := strconv.Itoa(score)
	if strings.TrimSpace(string(buf[:n])) == wanted {
		return false, nil
	}
	switch _, err := f.WriteAt([]byte(wanted), 0); {
	case err == nil:
		return true, nil
	case ended(err), errors.Is(err, unix.EACCES):
		return false, nil
	default:
		return false, fmt.Errorf("set oom_score_adj of process %d to %d: %w", pid, score, err)
	}
}

func ended(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) }
