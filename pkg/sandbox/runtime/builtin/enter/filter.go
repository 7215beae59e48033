package enter

// #include "enter.h"
import "C"

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// Filter is a compiled seccomp profile: the flags and the program of seccomp(2).
type Filter struct {
	flags   uint32
	program []byte
}

// instructionSize is that of a struct sock_filter.
const instructionSize = 8

const compileMode = "filter"

// Compile makes of a profile what the init process of a container loads for it, to the byte. It executes the calling program, since
// the compiler (libcontainer's) hands out its result to the kernel alone, and that can be watched only from inside; it takes some
// milliseconds.
func Compile(ctx context.Context, profile *configs.Seccomp) (*Filter, error) {
	in, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	written := make(chan error, 1)
	go func() {
		err := json.NewEncoder(w).Encode(profile)
		written <- errors.Join(err, w.Close())
	}()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = []string{C.ENTER_VARIABLE + "=" + compileMode}
	cmd.Stdin = in
	out, err := cmd.Output()
	_ = in.Close()
	err = errors.Join(err, <-written)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("compile a seccomp profile: %w", err)
	}
	if len(out) < 4+instructionSize || len(out)%instructionSize != 4 {
		return nil, fmt.Errorf("compile a seccomp profile: %d bytes are no filter", len(out))
	}
	return &Filter{flags: binary.NativeEndian.Uint32(out), program: out[4:]}, nil
}

// init is the process that Compile starts.
func init() {
	if os.Getenv(C.ENTER_VARIABLE) != compileMode {
		return
	}
	// A thread that waits for the answer to a raw system call can neither be stopped for a collection nor run another goroutine.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(2)
	if err := watchFilter(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// watchFilter writes the filter that libcontainer loads for a profile: it loads it on a thread whose calls to do so come to this one
// (seccomp_unotify(2)), which never answers.
func watchFilter(profile io.Reader, out io.Writer) error {
	var config configs.Seccomp
	if err := json.NewDecoder(profile).Decode(&config); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	calls, failed := make(chan libseccomp.ScmpFd), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := watchThread()
		if err != nil {
			failed <- err
			return
		}
		calls <- fd
		_, err = seccomp.InitSeccomp(&config)
		failed <- fmt.Errorf("the profile was not loaded: %w", err)
	}()
	select {
	case err := <-failed:
		return err
	case fd := <-calls:
		done := make(chan error, 1)
		go func() { done <- awaitFilter(fd, out) }()
		select {
		case err := <-done:
			return err
		case err := <-failed:
			return err
		}
	}
}

// watchThread makes calls of this thread that load filters come to the returned descriptor. It loads the filter for that itself, since
// the library would load it for all threads, that of awaitFilter too.
func watchThread() (libseccomp.ScmpFd, error) {
	program, err := watchProgram()
	if err != nil {
		return 0, fmt.Errorf("watch a thread: %w", err)
	}
	filter := make([]unix.SockFilter, len(program)/instructionSize)
	if _, err := binary.Decode(program, binary.NativeEndian, filter); err != nil {
		return 0, fmt.Errorf("watch a thread: %w", err)
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return 0, fmt.Errorf("watch a thread: %w", errno)
	}
	return libseccomp.ScmpFd(fd), nil
}

func watchProgram() ([]byte, error) {
	filter, err := libseccomp.NewFilter(libseccomp.ActAllow)
	if err != nil {
		return nil, err
	}
	defer filter.Release()
	load, err := libseccomp.GetSyscallFromName("seccomp")
	if err != nil {
		return nil, err
	}
	prctl, err := libseccomp.GetSyscallFromName("prctl")
	if err != nil {
		return nil, err
	}
	setsFilter, err := libseccomp.MakeCondition(0, libseccomp.CompareEqual, unix.PR_SET_SECCOMP)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(filter.AddRule(load, libseccomp.ActNotify),
		filter.AddRuleConditional(prctl, libseccomp.ActNotify, []libseccomp.ScmpCondition{setsFilter})); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	err = errors.Join(filter.ExportBPF(w), w.Close()) // some instructions fit in the pipe
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// awaitFilter lets calls go on up to the one that has a filter, which it writes.
func awaitFilter(fd libseccomp.ScmpFd, out io.Writer) error {
	for {
		call, err := libseccomp.NotifReceive(fd)
		if err != nil {
			return fmt.Errorf("watch a thread: %w", err)
		}
		// seccomp(SET_MODE_FILTER, flags, program), or prctl(PR_SET_SECCOMP, MODE_FILTER, program), which has no flags.
		args := call.Data.Args
		if args[2] != 0 && (args[0] == unix.SECCOMP_SET_MODE_FILTER || args[0] == unix.PR_SET_SECCOMP) {
			flags := uint32(args[1])
			if args[0] == unix.PR_SET_SECCOMP {
				flags = 0
			}
			return writeFilter(out, flags, int64(args[2]))
		}
		if err := libseccomp.NotifRespond(fd, &libseccomp.ScmpNotifResp{ID: call.ID, Flags: libseccomp.NotifRespFlagContinue}); err != nil {
			return fmt.Errorf("watch a thread: %w", err)
		}
	}
}

// writeFilter writes the filter of a struct sock_fprog at an address of this process.
func writeFilter(out io.Writer, flags uint32, address int64) error {
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return err
	}
	defer mem.Close()
	var program struct {
		Length uint16
		_      [6]byte
		Filter int64
	}
	if err := binary.Read(io.NewSectionReader(mem, address, int64(binary.Size(program))), binary.NativeEndian, &program); err != nil {
		return fmt.Errorf("read a filter: %w", err)
	}
	data := make([]byte, int(program.Length)*instructionSize)
	if _, err := mem.ReadAt(data, program.Filter); err != nil {
		return fmt.Errorf("read a filter: %w", err)
	}
	if err := binary.Write(out, binary.NativeEndian, flags); err != nil {
		return err
	}
	_, err = out.Write(data)
	return err
}
