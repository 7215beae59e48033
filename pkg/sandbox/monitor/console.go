package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Console is a socket over which an OCI runtime hands out the master of a terminal that it has made inside a container
// (github.com/opencontainers/runc, docs/terminals.md).
type Console struct {
	// Socket is the runtime's end.
	Socket *os.File
	ours   *net.UnixConn
}

// NewConsole makes the socket.
func NewConsole() (*Console, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "console")
	defer ours.Close()
	c := &Console{Socket: os.NewFile(uintptr(fds[1]), "console")}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make console socket: %w", err), c.Socket.Close())
	}
	c.ours = conn.(*net.UnixConn)
	return c, nil
}

// Receive waits for the master, which is the caller's, non-blocking. It also returns when nobody holds the runtime's end any more, the
// caller included.
func (c *Console) Receive(ctx context.Context) (*os.File, error) {
	defer context.AfterFunc(ctx, func() { _ = c.ours.SetDeadline(time.Unix(1, 0)) })()
	// The message's data is the name of the terminal.
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(maxFiles*4))
	_, n, _, _, err := c.ours.ReadMsgUnix(data, oob)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	files, err := receivedFiles(oob[:n])
	if err == nil && len(files) == 0 {
		err = errors.New("the runtime has sent none")
	}
	if err == nil {
		CloseFiles(files[1:])
		err = unix.SetNonblock(int(files[0].Fd()), true)
	}
	if err != nil {
		CloseFiles(files)
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	// Made anew, for the poller to take it.
	fd, err := unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	CloseFiles(files)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// Close releases both ends.
func (c *Console) Close() error {
	return errors.Join(ignoreClosed(c.Socket.Close()), ignoreClosed(c.ours.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
