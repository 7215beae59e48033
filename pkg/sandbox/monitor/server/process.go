package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/procfs"
)

// process is a child that is awaited through a pidfd: a parked goroutine instead of a thread in waitid(2).
type process struct {
	pid   int
	pidfd *os.File
}

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	return &process{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait reaps the process and tells how and when it ended.
func (p *process) wait() (unix.WaitStatus, time.Time) {
	defer p.pidfd.Close()
	var status unix.WaitStatus
	if raw, err := p.pidfd.SyscallConn(); err == nil {
		reaped := false
		err = raw.Read(func(uintptr) bool {
			pid, err := wait4(p.pid, &status, unix.WNOHANG)
			reaped = err != nil || pid == p.pid
			return reaped
		})
		if err == nil && reaped {
			return status, time.Now()
		}
	}
	// The poller refused the pidfd: a blocking wait serves as well.
	_, _ = wait4(p.pid, &status, 0)
	return status, time.Now()
}

// signal sends a signal by the pidfd: once the process is reaped its PID may be another's. A process that has ended is no
// error.
func (p *process) signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	// The one error of Control is that wait has closed the file; the package os has no name for it here.
	_ = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// alive tells whether the process has not been reaped yet.
func (p *process) alive() bool {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), 0, nil, 0) })
	return err == nil && sent == nil
}

func wait4(pid int, status *unix.WaitStatus, options int) (int, error) {
	for {
		n, err := unix.Wait4(pid, status, options, nil)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// exitCode is the code a shell reports: 128+n for signal n.
func exitCode(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// children keeps apart the processes that somebody waits for and the orphans that come to this process as their
// subreaper: descendants of a workload in a PID namespace that has another init.
type children struct {
	mu    sync.Mutex
	owned map[int]struct{}
}

func (c *children) own(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owned[pid] = struct{}{}
}

func (c *children) disown(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.owned, pid)
}

// reap waits for an owned process that was killed.
func (c *children) reap(pid int) error {
	defer c.disown(pid)
	_, err := wait4(pid, nil, 0)
	return err
}

// orphanAge is how long a zombie must have been seen before it counts as an orphan. Every other child is awaited by a
// blocked wait (the runtime library's helper processes, which this package does not know) and is gone at once.
const orphanAge = 2 * time.Second

// reapOrphans reaps orphaned zombies until ctx ends.
func (c *children) reapOrphans(ctx context.Context) {
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	defer signal.Stop(chld)
	seen := map[int]time.Time{}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-chld:
			if again == nil {
				again = time.After(orphanAge)
			}
		case <-again:
			again = nil
			if seen = c.sweep(seen, time.Now()); len(seen) > 0 {
				again = time.After(orphanAge)
			}
		}
	}
}

// sweep reaps the orphans among the zombies that were there at the last sweep too, and returns the younger ones.
func (c *children) sweep(seen map[int]time.Time, now time.Time) map[int]time.Time {
	young := map[int]time.Time{}
	for _, pid := range zombies() {
		c.mu.Lock()
		_, owned := c.owned[pid]
		c.mu.Unlock()
		if owned {
			continue
		}
		first, ok := seen[pid]
		if !ok {
			first = now
		}
		if now.Sub(first) < orphanAge {
			young[pid] = first
			continue
		}
		_, _ = wait4(pid, nil, unix.WNOHANG)
	}
	return young
}

// zombies lists this process's dead children.
func zombies() []int {
	var pids []int
	for _, pid := range procfs.Children(os.Getpid()) {
		if st, ok := procfs.Read(pid); ok && st.State == 'Z' {
			pids = append(pids, pid)
		}
	}
	return pids
}
