package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quiet is how long the output of a process that has ended is awaited, each time: others may hold it open for ever.
	quiet = time.Second
	// othersLimit is how long those others are listened to who go on printing.
	othersLimit = 3 * time.Second
	// copySize is how much is read at once, the capacity of a pipe.
	copySize = 64 << 10
)

// output copies what a process prints to its client.
type output struct {
	r *os.File
	// w is the process's end of a pipe; nil for a terminal.
	w     *os.File
	until atomic.Pointer[time.Time] // when to stop reading; nil before the process has ended
	done  chan struct{}
}

// newOutput makes a pipe whose content goes to out; nil drops it. gone is called when the client takes no more.
func newOutput(gone func(), out io.Writer) (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make output pipe: %w", err)
	}
	o := copyOutput(r, gone, out)
	o.w = w
	return o, nil
}

// copyOutput begins to copy.
func copyOutput(r *os.File, gone func(), out io.Writer) *output {
	if out == nil {
		out = io.Discard
	}
	o := &output{r: r, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		if err := o.copy(out); err != nil {
			gone()
		}
	}()
	return o
}

// copy returns an error if the client cannot be written to.
func (o *output) copy(out io.Writer) error {
	buf := make([]byte, copySize)
	for {
		n, err := o.r.Read(buf)
		if n > 0 {
			if _, err := out.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return o.rest(out, buf)
		case err != nil: // the end; of a terminal it is EIO
			return nil //nolint:nilerr // see there
		default:
			o.await()
		}
	}
}

// await bounds the wait for more once the process has ended.
func (o *output) await() {
	until := o.until.Load()
	if until == nil {
		return
	}
	next := time.Now().Add(quiet)
	if next.After(*until) {
		next = *until
	}
	_ = o.r.SetReadDeadline(next)
}

// rest copies what is there without waiting for more: a read at its deadline looks for nothing.
func (o *output) rest(out io.Writer, buf []byte) error {
	_ = o.r.SetReadDeadline(time.Time{})
	raw, err := o.r.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // it has been closed: there is no rest
	}
	var writeErr error
	_ = raw.Read(func(fd uintptr) bool {
		for range 16 { // a descendant may go on printing
			n, err := unix.Read(int(fd), buf)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 || err != nil {
				break
			}
			if _, writeErr = out.Write(buf[:n]); writeErr != nil {
				break
			}
		}
		return true
	})
	return writeErr
}

// finish waits for the last output after the process has ended, until the client has taken it. A client takes as long as it
// likes, such as a person who reads page by page: what ends its session is the idle timeout, or that it goes.
func (o *output) finish(ctx context.Context) {
	if o.w != nil {
		_ = o.w.Close()
	}
	until := time.Now().Add(othersLimit)
	o.until.Store(&until)
	o.await()
	select {
	case <-o.done:
	case <-ctx.Done():
	}
}

// close ends the copying, whatever is left.
func (o *output) close() {
	if o.w != nil {
		_ = o.w.Close()
	}
	_ = o.r.Close()
}
