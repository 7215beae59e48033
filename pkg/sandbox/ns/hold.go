package ns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrOther says that a process, which is known by its PID alone, has ended, and that another one may have its PID.
var ErrOther = errors.New("the process has ended")

// Held is a namespace of a process that may end: the kernel gives its number to no other as long as it is held. nil is none.
type Held struct {
	path string
	kind Kind
	file *os.File
}

// Hold holds a namespace of the process that has the PID, if is, which is asked while the PID cannot change hands, says that it is the
// one that is meant. ErrOther. The caller closes what it gets.
func Hold(pid int, k Kind, is func() bool) (*Held, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("hold %s namespace of process %d: %w: %w", k, pid, ErrOther, err)
	}
	defer unix.Close(fd)
	f, err := os.Open(path(pid, k))
	if err != nil {
		return nil, fmt.Errorf("hold %s namespace of process %d: %w: %w", k, pid, ErrOther, err)
	}
	// If the process is there now, all that was asked of its PID was of it (pidfd_open(2)).
	if !is() || unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
		_ = f.Close()
		return nil, fmt.Errorf("hold %s namespace of process %d: %w", k, pid, ErrOther)
	}
	return &Held{path(pid, k), k, f}, nil
}

// Path leads to the namespace as long as the process lives; of none it is "".
func (h *Held) Path() string {
	if h == nil {
		return ""
	}
	return h.path
}

// Check returns an error unless the process, which the caller knows to be alive, is in the namespace.
func (h *Held) Check(pid int) error {
	if h == nil {
		return nil
	}
	of, err := os.Stat(path(pid, h.kind))
	if err != nil {
		return fmt.Errorf("check %s namespace of process %d: %w", h.kind, pid, err)
	}
	held, err := h.file.Stat()
	if err != nil {
		return fmt.Errorf("check %s namespace: %w", h.kind, err)
	}
	if !os.SameFile(of, held) {
		return fmt.Errorf("process %d came into another %s namespace: %w", pid, h.kind, ErrOther)
	}
	return nil
}

// Close ends the hold.
func (h *Held) Close() {
	if h != nil {
		_ = h.file.Close()
	}
}

func path(pid int, k Kind) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, k) }
