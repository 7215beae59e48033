// The tools program runs in test containers under several names, for what Debian's busybox lacks:
// ipcs and pgrep, the pause container's process, a program to be made setuid, and attempts at what containers must not do.
// By the name it is called with:
//
//	attach PID  becomes the tracer of a process, and lets it go; exit status 1 if it may not
//	overwrite SECONDS
//	            tries so long to write to the programs of all processes that run other ones than the image's
//	syscalls    makes system calls that a container has no use for, with arguments that do nothing
//	ipcs        lists System V shared memory segments
//	pgrep NAME  prints the pids of processes whose name contains NAME; exit status 1 if there is none
//	nnp         prints the effective user
//	pause       sleeps until SIGTERM or SIGINT, reaping children
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	status, err := run(filepath.Base(os.Args[0]), os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 2
	}
	os.Exit(status)
}

func run(name string, args []string) (status int, err error) {
	switch name {
	case "attach":
		if len(args) != 1 {
			return 0, errors.New("usage: attach PID")
		}
		return attach(args[0])
	case "overwrite":
		if len(args) != 1 {
			return 0, errors.New("usage: overwrite SECONDS")
		}
		return 0, overwrite(args[0])
	case "syscalls":
		syscalls()
		return 0, nil
	case "ipcs":
		return 0, ipcs()
	case "pgrep":
		if len(args) != 1 {
			return 0, errors.New("usage: pgrep NAME")
		}
		return pgrep(args[0])
	case "nnp":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
		return 0, nil
	case "pause":
		pause()
		return 0, nil
	}
	return 0, fmt.Errorf("%s: no such tool", name)
}

// ipcs prints the table that ipcs -m of util-linux does, from proc_pid_sysvipc(5).
func ipcs() error {
	data, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		return fmt.Errorf("list shared memory: %w", err)
	}
	fmt.Printf("\n------ Shared Memory Segments --------\n%-10s %-10s %-10s %-10s %-10s %-10s\n",
		"key", "shmid", "owner", "perms", "bytes", "nattch")
	for i, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		// key shmid perms size cpid lpid nattch uid …
		f := strings.Fields(line)
		if i == 0 || len(f) < 8 {
			continue
		}
		key, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return fmt.Errorf("parse key %q: %w", f[0], err)
		}
		fmt.Printf("%#010x %-10s %-10s %-10s %-10s %-10s\n", uint32(key), f[1], f[7], f[2], f[3], f[6])
	}
	return nil
}

func pgrep(name string) (status int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	status = 1
	for _, dir := range dirs {
		pid := filepath.Base(dir)
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || pid == strconv.Itoa(os.Getpid()) {
			continue // it is gone, or is this one
		}
		if strings.Contains(string(comm), name) {
			fmt.Println(pid)
			status = 0
		}
	}
	return status, nil
}

func pause() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		// As pid 1 of a shared PID namespace it inherits orphans. One signal may stand for several of them.
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
}
