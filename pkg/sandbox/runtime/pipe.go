package runtime

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The ends of a pipe, see pipe(2).
const (
	ReadEnd = iota
	WriteEnd
)

// NewPipe returns a pipe whose end ours does not block, so that waiting for it takes a goroutine and no thread; the other one, which
// a process gets, is blocking as programs expect.
func NewPipe(name string, ours int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make %s pipe: %w", name, err)
	}
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		return nil, nil, fmt.Errorf("make %s pipe: %w", name, err)
	}
	return os.NewFile(uintptr(fds[ReadEnd]), name), os.NewFile(uintptr(fds[WriteEnd]), name), nil
}
