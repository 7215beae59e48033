package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
)

// consoleWait bounds how long a runtime's program may take, once it has ended, for the terminal to be there: one that it has left to
// a helper.
const consoleWait = 10 * time.Second

// console is a socket in the file system, to which the runtime's program sends the master of a terminal (--console-socket;
// github.com/opencontainers/runc, docs/terminals.md).
type console struct {
	// path is the socket's for any process of this machine. It leads through a descriptor of this one, since the name of a
	// socket is 107 bytes at most (unix(7)) and that of a directory may be longer.
	path     string
	dir      *os.File
	listener *net.UnixListener
}

// listenConsole makes the socket in a directory that nobody else may enter.
func listenConsole(dir string) (*console, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	path := filepath.Join("/proc", fmt.Sprint(os.Getpid()), "fd", fmt.Sprint(d.Fd()), "console")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make console socket: %w", err), d.Close())
	}
	return &console{path: path, dir: d, listener: l}, nil
}

// terminal is how that of a process comes: by way of a socket in dir, with a size, if that is given. Not all programs see to the size.
type terminal struct {
	dir  string
	size *specs.Box
}

// launch is run for an operation that makes a process, with a terminal, if stdio has one.
func (r *Runtime) launch(ctx context.Context, limit time.Duration, t terminal, stdio runtime.Stdio, operation string, args ...string) error {
	if stdio.Console == nil {
		return r.run(ctx, limit, stdio, operation, args...)
	}
	c, err := listenConsole(t.dir)
	if err != nil {
		return err
	}
	defer c.close()
	err = r.run(ctx, limit, runtime.Stdio{}, operation, slices.Concat([]string{"--console-socket", c.path}, args)...)
	if err != nil {
		return err
	}
	if err := c.handOn(ctx, consoleWait, t.size, stdio.Console); err != nil {
		return fmt.Errorf("OCI runtime %s, %s: %w", r.Command.Path, operation, err)
	}
	return nil
}

// close removes the socket. A terminal that was not taken goes with it.
func (c *console) close() {
	_ = c.listener.Close()
	_ = c.dir.Close()
}

// handOn takes the terminal's master and sends it to the socket of who has asked for the process. It keeps no descriptor of it: the
// terminal hangs up when the others close theirs.
func (c *console) handOn(ctx context.Context, wait time.Duration, size *specs.Box, to *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wait,
		fmt.Errorf("none has come in %s: %w", wait, context.DeadlineExceeded))
	defer cancel()
	name, rights, err := c.receive(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return fmt.Errorf("receive the terminal: %w", err)
	}
	sent := 0
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials or the like
		}
		for _, fd := range fds {
			defer unix.Close(fd)
			if size != nil { // what is no terminal has none
				_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)})
			}
		}
		sent += len(fds)
	}
	if sent != 1 {
		return fmt.Errorf("receive the terminal: it has sent %d descriptors", sent)
	}
	// The other end's buffer is empty.
	if err := unix.Sendmsg(int(to.Fd()), name, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("hand on the terminal: %w", err)
	}
	return nil
}

// receive returns the message that the runtime has sent: the terminal's name, and its descriptors, which are the caller's.
func (c *console) receive(ctx context.Context) (name, rights []byte, err error) {
	defer context.AfterFunc(ctx, func() { _ = c.listener.SetDeadline(time.Unix(1, 0)) })()
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	name, rights = make([]byte, 4096), make([]byte, unix.CmsgSpace(4*4))
	n, m, _, _, err := conn.ReadMsgUnix(name, rights)
	if err != nil {
		return nil, nil, err
	}
	return name[:n], rights[:m], nil
}
