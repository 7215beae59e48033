package oci

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// longDir is a directory whose name is too long for that of a socket.
func longDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// socketPair is the socket of who wants a terminal.
func socketPair(t *testing.T) (to, from *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	to, from = os.NewFile(uintptr(fds[0]), "to"), os.NewFile(uintptr(fds[1]), "from")
	t.Cleanup(func() { to.Close(); from.Close() })
	return to, from
}

// TestConsole sends what a runtime may send, and what none should.
func TestConsole(t *testing.T) {
	for name, c := range map[string]struct {
		files    int  // that are sent
		silent   bool // connects, and sends nothing
		stranger bool // does not even connect
		err      string
	}{
		"one terminal":  {files: 1},
		"no terminal":   {files: 0, err: "sent 0 descriptors"},
		"two terminals": {files: 2, err: "sent 2 descriptors"},
		"silent":        {silent: true, err: "none has come in 50ms"},
		"stranger":      {stranger: true, err: "none has come in 50ms"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := longDir(t)
			console, err := listenConsole(dir)
			if err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if !c.stranger {
				conn, err := net.Dial("unix", console.path)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				rights := unix.UnixRights([]int{int(w.Fd()), int(w.Fd())}[:c.files]...)
				if c.files == 0 {
					rights = nil
				}
				if !c.silent {
					if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte("/dev/pts/0"), rights, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			w.Close()
			to, from := socketPair(t)
			err = console.handOn(t.Context(), 50*time.Millisecond, nil, to)
			console.close()
			to.Close()
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("err = %v, want %q", err, c.err)
				}
				if (c.silent || c.stranger) && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v is no DeadlineExceeded", err)
				}
			} else if err != nil {
				t.Error(err)
			} else {
				checkReceived(t, from)
			}
			// Nobody holds the other end: it was handed on, or closed.
			_ = r.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := r.Read(make([]byte, 10)); n != 0 || os.IsTimeout(err) {
				t.Errorf("the descriptor was kept: %d, %v", n, err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// checkReceived takes the terminal, the write end of a pipe, and closes it.
func checkReceived(t *testing.T, from *os.File) {
	t.Helper()
	name, rights := make([]byte, 100), make([]byte, 100)
	n, m, _, _, err := unix.Recvmsg(int(from.Fd()), name, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil || string(name[:n]) != "/dev/pts/0" {
		t.Fatalf("received %q, %v", name[:n], err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("descriptors %v, %v", fds, err)
	}
	_ = unix.Close(fds[0])
}
