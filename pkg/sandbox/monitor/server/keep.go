package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/monitor/pump"
	"criserver/pkg/sandbox/runtime"
)

// keeper holds what a command prints to, beside its client, so that a command that is to go on without its client is not ended by the
// kernel: by SIGHUP when the last master of its terminal is closed, by SIGPIPE when a pipe has no reader. Of a command that ends with its
// client there is none, and nil does nothing.
type keeper struct {
	outputs []*os.File
	// console is where the runtime sends the terminal, client where it is wanted; nil without one.
	console *monitor.Console
	client  *os.File
}

// keep returns what the command is to get in place of io.
func keep(io runtime.Stdio) (*keeper, runtime.Stdio, error) {
	k := &keeper{}
	if io.Console != nil {
		console, err := monitor.NewConsole()
		if err != nil {
			return nil, io, err
		}
		k.console, k.client = console, io.Console
		return k, runtime.Stdio{Console: console.Socket}, nil
	}
	for _, f := range []*os.File{io.Stdout, io.Stderr} {
		if len(pipesOf([]*os.File{f})) == 0 {
			continue // a file, or nothing
		}
		// Another end of the same pipe (proc_pid_fd(5)).
		r, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			k.close()
			return nil, io, fmt.Errorf("open the pipe of a command: %w", err)
		}
		k.outputs = append(k.outputs, r)
	}
	return k, io, nil
}

// handOn gives the client the terminal, once the command has it.
func (k *keeper) handOn(ctx context.Context) error {
	if k == nil || k.console == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, consoleWait)
	defer cancel()
	_ = k.console.Socket.Close() // the runtime has its own
	master, err := k.console.Receive(ctx)
	if err != nil {
		return err
	}
	k.outputs = []*os.File{master}
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendmsg(int(k.client.Fd()), []byte("terminal"), unix.UnixRights(int(fd)), nil, unix.MSG_NOSIGNAL)
	})
	if err = errors.Join(err, sent); err != nil {
		return fmt.Errorf("hand on the terminal: %w", err)
	}
	return nil
}

// drain takes the client's place until the command has ended. What it prints then is nobody's.
func (k *keeper) drain(exited <-chan unix.WaitStatus) {
	if k != nil {
		for _, r := range k.outputs {
			go pump.Run(r, func(time.Time, []byte) {})
		}
	}
	<-exited
	k.close()
}

func (k *keeper) close() {
	if k == nil {
		return
	}
	monitor.CloseFiles(k.outputs)
	if k.console != nil {
		_ = k.console.Close()
	}
}
