package server

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// outputPipe returns a pipe for a container's output. The read end is non-blocking, so that waiting for output takes
// a goroutine and no thread; the write end, which the container gets, is blocking as programs expect.
func outputPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make output pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("make output pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output"), nil
}

// readSize is how much output is read at once: the default capacity of a pipe, see pipe(7).
const readSize = 64 << 10

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

// pump gives a stream to write, which must not keep the data, until its end; a terminal's is EIO. It takes a buffer only while
// there is something to read: an idle container costs a parked goroutine.
func pump(r *os.File, write func(at time.Time, data []byte)) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	defer r.Close()
	for {
		var (
			buf     *[]byte
			n       int
			readErr error
		)
		err := raw.Read(func(fd uintptr) bool {
			if buf == nil {
				buf = readBuffers.Get().(*[]byte)
			}
			for {
				n, readErr = unix.Read(int(fd), *buf)
				if readErr != unix.EINTR {
					break
				}
			}
			if readErr == unix.EAGAIN {
				readBuffers.Put(buf)
				buf = nil
				return false
			}
			return true
		})
		if n > 0 {
			write(time.Now(), (*buf)[:n])
		}
		if buf != nil {
			readBuffers.Put(buf)
		}
		if err != nil || readErr != nil || n == 0 {
			return
		}
	}
}

var memory struct {
	sync.Mutex
	timer *time.Timer
}

// releaseMemory gives free heap back to the system a while after the last call: a burst of starts leaves behind some
// megabytes of decoded specifications, and this process is resident on every node.
func releaseMemory() {
	const quiet = time.Second
	memory.Lock()
	defer memory.Unlock()
	if memory.timer == nil {
		memory.timer = time.AfterFunc(quiet, debug.FreeOSMemory)
		return
	}
	memory.timer.Reset(quiet)
}
