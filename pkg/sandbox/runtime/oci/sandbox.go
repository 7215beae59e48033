package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
)

// guest is a process in a container with a kernel of its own, as "ps" of runsc tells of it.
type guest struct {
	PID, PPID, PGID int
}

// maxRounds bounds how often new processes are looked for among those that fork as fast as they are killed.
const maxRounds = 10

// SignalCommand implements runtime.Sandbox.
func (r *Runtime) SignalCommand(ctx context.Context, id string, inside int, sig unix.Signal, all bool) error {
	if !all {
		return r.signalInside(ctx, id, inside, sig)
	}
	// It was made the leader of a group, which may be there without it.
	f, told := family{pids: map[int]bool{inside: true}, groups: map[int]bool{inside: true}}, map[int]bool{}
	for range maxRounds {
		guests, err := r.guests(ctx, id)
		if err != nil {
			return err
		}
		found := slices.DeleteFunc(f.grow(guests), func(pid int) bool { return told[pid] })
		if len(found) == 0 {
			return nil
		}
		for _, pid := range found {
			told[pid] = true
			if err := r.signalInside(ctx, id, pid, sig); err != nil {
				return err
			}
		}
		if sig != unix.SIGKILL { // those who have heard it may start others, which need not
			return nil
		}
	}
	return fmt.Errorf("what command %d in container %s has started starts more and more", inside, id)
}

// family is a command, its descendants, and who is in a process group with one of them.
type family struct{ pids, groups map[int]bool }

// grow takes in those that belong to the family, and returns who of it is there. The container's init never is.
func (f family) grow(guests []guest) (there []int) {
	const init = 1
	initGroup := 0
	for _, g := range guests {
		if g.PID == init {
			initGroup = g.PGID
		}
	}
	for grown := true; grown; {
		grown = false
		for _, g := range guests {
			if g.PID == init || f.pids[g.PID] && (f.groups[g.PGID] || g.PGID == initGroup) {
				continue
			}
			if !f.pids[g.PID] && !f.pids[g.PPID] && !f.groups[g.PGID] {
				continue
			}
			f.pids[g.PID], grown = true, true
			if g.PGID != initGroup {
				f.groups[g.PGID] = true
			}
		}
	}
	for _, g := range guests {
		if g.PID != init && f.pids[g.PID] {
			there = append(there, g.PID)
		}
	}
	return there
}

// guests asks for a table, since with the format json there is nothing but PIDs.
func (r *Runtime) guests(ctx context.Context, id string) ([]guest, error) {
	out, err := os.CreateTemp(r.dir, "ps-")
	if err != nil {
		return nil, fmt.Errorf("list processes in container: %w", err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	if err := r.run(ctx, killLimit, runtime.Stdio{Stdout: out}, "ps", id); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(out.Name())
	if err != nil {
		return nil, fmt.Errorf("list processes in container: %w", err)
	}
	return parseGuests(string(data))
}

// parseGuests reads a table whose first line names its columns.
func parseGuests(table string) (all []guest, err error) {
	lines := strings.Split(strings.TrimSpace(table), "\n")
	names := strings.Fields(lines[0])
	pid, ppid, pgid := slices.Index(names, "PID"), slices.Index(names, "PPID"), slices.Index(names, "PGID")
	if min(pid, ppid, pgid) < 0 {
		return nil, fmt.Errorf("list processes in container: no columns PID, PPID, PGID in %q", lines[0])
	}
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) <= max(pid, ppid, pgid) {
			continue
		}
		var g guest
		for column, value := range map[int]*int{pid: &g.PID, ppid: &g.PPID, pgid: &g.PGID} {
			n, aerr := strconv.Atoi(fields[column])
			*value, err = n, errors.Join(err, aerr)
		}
		all = append(all, g)
	}
	if err != nil {
		return nil, fmt.Errorf("list processes in container: %w", err)
	}
	return all, nil
}

// signalInside sends a signal to a process, which may have ended meanwhile.
func (r *Runtime) signalInside(ctx context.Context, id string, pid int, sig unix.Signal) error {
	err := r.run(ctx, killLimit, runtime.Stdio{}, "kill", "--pid", strconv.Itoa(pid), id, strconv.Itoa(int(sig)))
	if err == nil {
		return nil
	}
	guests, lerr := r.guests(ctx, id)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	for _, g := range guests {
		if g.PID == pid {
			return err
		}
	}
	return nil
}
