// Package capture takes the output of a command that may leave processes behind.
package capture

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Pipe captures a stream of a command. Exactly its first limit bytes are kept; the rest is read and dropped.
type Pipe struct {
	r, w  *os.File
	buf   bytes.Buffer
	limit int
	done  chan struct{}
}

// New returns a pipe that keeps up to limit bytes.
func New(limit int) (*Pipe, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make output pipe: %w", err)
	}
	c := &Pipe{r: r, w: w, limit: limit, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		chunk := make([]byte, 32<<10)
		for {
			n, err := r.Read(chunk)
			c.keep(chunk[:n])
			if err != nil {
				return
			}
		}
	}()
	return c, nil
}

func (c *Pipe) keep(data []byte) {
	c.buf.Write(data[:min(len(data), c.limit-c.buf.Len())])
}

// Finish returns what the command printed, once it has ended: all of that is in the pipe by now, but the end of the
// stream comes only when the last process that holds the pipe has ended too.
func (c *Pipe) Finish() []byte {
	_ = c.w.Close()
	_ = c.r.SetReadDeadline(time.Unix(1, 0))
	<-c.done
	_ = c.r.SetReadDeadline(time.Time{})
	raw, err := c.r.SyscallConn()
	if err != nil {
		return c.buf.Bytes()
	}
	chunk := make([]byte, 32<<10)
	_ = raw.Read(func(fd uintptr) bool {
		for range c.limit / len(chunk) { // a descendant may go on printing
			n, err := unix.Read(int(fd), chunk)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 || err != nil {
				break
			}
			c.keep(chunk[:n])
		}
		return true
	})
	return c.buf.Bytes()
}

// Writer is the end that the command gets; it stays the Pipe's.
func (c *Pipe) Writer() *os.File { return c.w }

// Close releases both ends.
func (c *Pipe) Close() {
	_ = c.w.Close()
	_ = c.r.Close()
}
