package server

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/monitor/crilog"
)

const (
	// maxLag is how much output waits for a client that does not take it, before it is dropped.
	maxLag = 1 << 20
	// lastWait bounds how long the end of the output waits for a client to take it.
	lastWait = 10 * time.Second
)

// clients are those who are attached to a container.
type clients struct {
	mu   sync.Mutex
	all  []*client
	done bool // no more output comes
}

// past is a deadline for whoever waits now.
var past = time.Unix(1, 0)

// client takes output from a queue, so that it never holds up the container nor its log.
type client struct {
	files [2]*os.File
	wake  chan struct{} // capacity 1

	mu     sync.Mutex
	queue  []chunk
	queued int
	ended  bool // nothing is added any more
	lagged bool
}

type chunk struct {
	stream crilog.Stream
	data   []byte
}

// send gives output to all. The data is the caller's again when it returns.
func (cs *clients) send(stream crilog.Stream, data []byte) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.all) == 0 {
		return
	}
	data = slices.Clone(data)
	for _, c := range cs.all {
		c.add(chunk{stream, data})
	}
}

// add takes one who is there too late for no output more than nothing.
func (cs *clients) add(c *client) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.done {
		c.end()
		return
	}
	cs.all = append(cs.all, c)
}

func (cs *clients) remove(c *client) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.all = slices.DeleteFunc(cs.all, func(other *client) bool { return other == c })
}

// end tells all that the output has ended.
func (cs *clients) end() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.done = true
	for _, c := range cs.all {
		c.end()
	}
	cs.all = nil
}

func (c *client) add(ch chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	if c.queued+len(ch.data) > maxLag {
		c.ended, c.lagged, c.queue = true, true, nil
		c.deadline(past) // it hangs in a write
	} else {
		c.queue = append(c.queue, ch)
		c.queued += len(ch.data)
	}
	c.signal()
}

func (c *client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.ended = true
		c.deadline(time.Now().Add(lastWait))
	}
	c.signal()
}

func (c *client) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// next returns what is to be written, and whether that is all that ever comes.
func (c *client) next() (chunks []chunk, ended, lagged bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	chunks, c.queue = c.queue, nil
	return chunks, c.ended, c.lagged
}

func (c *client) wrote(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queued -= n
}

// run writes until the output ends, the client lags too far behind, or ctx ends: the client has gone.
func (c *client) run(ctx context.Context) monitor.AttachEnd {
	defer context.AfterFunc(ctx, func() { c.deadline(past) })()
	for {
		chunks, ended, lagged := c.next()
		if lagged {
			return monitor.AttachEnd{Lagged: true}
		}
		for _, ch := range chunks {
			if _, err := c.files[ch.stream].Write(ch.data); err != nil {
				return monitor.AttachEnd{Lagged: os.IsTimeout(err)}
			}
			c.wrote(len(ch.data))
		}
		if ended {
			return monitor.AttachEnd{}
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return monitor.AttachEnd{}
		}
	}
}

func (c *client) deadline(at time.Time) {
	for _, f := range c.files {
		_ = f.SetWriteDeadline(at) // /dev/null has none
	}
}

// attach answers twice: when the client is connected, and at the end.
func (s *Server) attach(ctx context.Context, conn *net.UnixConn, p monitor.AttachRequest, files []*os.File) error {
	c, err := s.lookup(p.ID)
	if err != nil {
		return err
	}
	if st := c.snapshot(); st.Phase != monitor.PhaseRunning && st.Phase != monitor.PhaseCreated {
		return fmt.Errorf("container %s is %s: %w", p.ID, st.Phase, monitor.ErrNotRunning)
	}
	if len(files) != 2 {
		return fmt.Errorf("attach to %s: want 2 descriptors, got %d", p.ID, len(files))
	}
	cl := &client{wake: make(chan struct{}, 1)}
	for i, f := range files {
		if cl.files[i], err = nonblocking(f); err != nil {
			return err
		}
		defer cl.files[i].Close()
	}
	input, err := c.inputFor(p)
	if err != nil {
		return err
	}
	c.clients.add(cl)
	defer c.clients.remove(cl)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	endInput := func() {
		if p.Stdin && !c.io.terminal && c.stdinOnce {
			c.closeInput()
		}
	}
	go func() {
		var b [1]byte
		for { // a byte is the end of the client's input, and the connection's end that of the client
			if _, err := conn.Read(b[:]); err != nil {
				break
			}
			endInput()
		}
		endInput()
		cancel()
	}()
	err = replyWith(conn, monitor.AttachResponse{Terminal: c.io.terminal}, input)
	monitor.CloseFiles(input)
	if err != nil {
		logrus.WithError(err).Debug("the client has gone before it was attached")
		return nil
	}
	if err := monitor.WriteFrame(conn, cl.run(ctx)); err != nil {
		logrus.WithError(err).Debug("the client has gone before its end")
	}
	return nil
}

// inputFor returns a descriptor of its own of the container's input, none if there is none.
func (c *container) inputFor(p monitor.AttachRequest) ([]*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.io.input == nil || !p.Stdin && !c.io.terminal {
		return nil, nil
	}
	dup, err := duplicate(c.io.input)
	if err != nil {
		return nil, err
	}
	return []*os.File{dup}, nil
}

// closeInput ends the container's stdin, once those who have a descriptor of it close theirs.
func (c *container) closeInput() {
	c.mu.Lock()
	defer c.mu.Unlock()
	monitor.CloseFiles([]*os.File{c.io.input})
	c.io.input = nil
}

// duplicate is for a file whose descriptor must stay as it is: File.Fd would make it block.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup int
	var dupErr error
	if err := raw.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), dupErr)
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}

// nonblocking returns a file of its own that waits in the poller.
func nonblocking(f *os.File) (*os.File, error) {
	dup, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		_ = unix.Close(dup)
		return nil, fmt.Errorf("make %s non-blocking: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}
