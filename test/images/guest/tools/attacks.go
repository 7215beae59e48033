package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// attach calls ptrace(2).
func attach(arg string) (status int, err error) {
	pid, err := strconv.Atoi(arg)
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // a tracer is a thread
	if err := syscall.PtraceAttach(pid); err != nil {
		fmt.Println("attach:", err)
		return 1, nil
	}
	if _, err := syscall.Wait4(pid, nil, syscall.WALL, nil); err != nil {
		return 0, err
	}
	fmt.Println("attached")
	return 0, syscall.PtraceDetach(pid)
}

// overwrite prints what it has met: the name of a process, its program, and what has become of the tries to write to that. While a program
// runs it cannot be written to (ETXTBSY), so that a descriptor is kept of it, and the try repeated when the process may have ended.
func overwrite(seconds string) error {
	limit, err := time.ParseDuration(seconds + "s")
	if err != nil {
		return err
	}
	programs := map[string]*program{}
	for end := time.Now().Add(limit); time.Now().Before(end); {
		dirs, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			meet(programs, dir)
		}
		for _, p := range programs {
			p.write()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		fmt.Println(name+":", programs[name].result)
	}
	return nil
}

// program is one that was met: a descriptor that opens it, and what writing gave last.
type program struct {
	fd     int
	result error
}

// running tells whether the program could not be written to only because it ran.
func (p *program) running() bool { return errors.Is(p.result, syscall.ETXTBSY) }

// meet adds the program of a process, once for each name that the process has.
func meet(programs map[string]*program, dir string) {
	name, _ := os.ReadFile(dir + "/comm")
	fd, err := syscall.Open(dir+"/exe", unix.O_PATH|syscall.O_CLOEXEC, 0)
	if err != nil { // it is gone, or has no program
		return
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	key := strings.TrimSpace(string(name)) + " " + path
	old := programs[key]
	if err != nil || strings.HasPrefix(path, "/bin/") || old != nil && !old.running() { // one of the image's, or known
		syscall.Close(fd)
		return
	}
	if old != nil {
		syscall.Close(old.fd)
	}
	programs[key] = &program{fd: fd, result: syscall.ETXTBSY}
}

// write tries until something else comes of it than that the program runs.
func (p *program) write() {
	if !p.running() {
		return
	}
	fd, err := syscall.Open(fmt.Sprintf("/proc/self/fd/%d", p.fd), syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err == nil {
		_, err = syscall.Write(fd, []byte("\x7fELF")) // as it begins, so that nothing breaks where it can be written
		syscall.Close(fd)
	}
	if err == nil {
		err = errors.New("written")
	}
	p.result = err
}

// syscalls prints what the kernel says of the arguments, or who forbids the calls.
func syscalls() {
	const bad = 1 // no address, no flag of unshare(2)
	for _, c := range []struct {
		name      string
		number    uintptr
		arguments [5]uintptr
	}{
		{"add_key", unix.SYS_ADD_KEY, [5]uintptr{bad, bad, bad, bad}},
		{"bpf", unix.SYS_BPF, [5]uintptr{1 << 20, bad, 1 << 20}},
		{"keyctl", unix.SYS_KEYCTL, [5]uintptr{1 << 20}},
		{"mount", unix.SYS_MOUNT, [5]uintptr{bad, bad, bad, 0, bad}},
		{"unshare", unix.SYS_UNSHARE, [5]uintptr{bad}},
	} {
		a := c.arguments
		_, _, errno := unix.Syscall6(c.number, a[0], a[1], a[2], a[3], a[4], 0)
		fmt.Println(c.name+":", unix.ErrnoName(errno))
	}
}
