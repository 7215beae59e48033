// Package pump reads the output of processes.
package pump

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readSize is how much output is read at once: the default capacity of a pipe, see pipe(7).
	readSize = 64 << 10
	// busySize is both for a container that has filled its pipe: fewer and longer turns of writer and reader. An idle
	// container pays neither for the buffer nor for the kernel's slots.
	busySize = 256 << 10
)

var (
	readBuffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}
	busyBuffers = sync.Pool{New: func() any { b := make([]byte, busySize); return &b }}
)

// Run gives a stream to write, which must not keep the data, until its end; a terminal's is EIO. It takes a buffer only while
// there is something to read: an idle container costs a parked goroutine.
func Run(r *os.File, write func(at time.Time, data []byte)) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	defer r.Close()
	buffers, asked := &readBuffers, false
	for {
		n, err := readOnce(raw, buffers, write)
		if err != nil || n == 0 {
			return
		}
		if n == readSize && !asked {
			if asked = true; grow(raw) {
				buffers = &busyBuffers
			}
		}
	}
}

// grow enlarges a pipe. It is refused to a user who has too many large pipes, and to a terminal: then all stays as it is.
func grow(raw syscall.RawConn) bool {
	var size int
	var err error
	ctlErr := raw.Control(func(fd uintptr) { size, err = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, busySize) })
	return ctlErr == nil && err == nil && size >= busySize
}

// readOnce waits for output and hands on one read of it.
func readOnce(raw syscall.RawConn, buffers *sync.Pool, write func(at time.Time, data []byte)) (int, error) {
	var (
		buf     *[]byte
		n       int
		readErr error
	)
	err := raw.Read(func(fd uintptr) bool {
		if buf == nil {
			buf = buffers.Get().(*[]byte)
		}
		for {
			n, readErr = unix.Read(int(fd), *buf)
			if readErr != unix.EINTR {
				break
			}
		}
		if readErr == unix.EAGAIN {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if n > 0 {
		write(time.Now(), (*buf)[:n])
	}
	if buf != nil {
		buffers.Put(buf)
	}
	return n, errors.Join(err, readErr)
}
