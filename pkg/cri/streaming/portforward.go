package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"criserver/pkg/cni/netns"
)

const (
	dialLimit = 10 * time.Second
	// halfOpen is how long somebody who has said that he sends no more waits for a client that sends nothing either.
	halfOpen = time.Minute
	// resetPoll is how often it is looked whether a client that sends no more has gone.
	resetPoll = time.Second
)

// forward serves one connection of a client to a port. It ends with the session, which is ctx, with the client's stream, or with the
// application, whose half may end before the client's; that has to be idle for halfOpen then.
func forward(ctx context.Context, op PortForward, port int32, stream io.ReadWriteCloser, halfOpen time.Duration) error {
	conn, err := dial(ctx, op.NetNS, port)
	if err != nil {
		return fmt.Errorf("connect to port %d of pod %s: %w", port, op.Pod, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	up := &upward{conn: conn, done: make(chan struct{})}
	up.used.Store(time.Now().UnixNano())
	go up.run(ctx, stream)
	_, err = io.Copy(stream, conn)
	if err == nil {
		_ = stream.Close() // what is sent from here on; what comes is still read
		up.await(ctx, halfOpen)
	} // else it was reset, by one side or the other: that is between them
	cancel()
	_ = conn.Close()
	if s, ok := stream.(interface{ Reset() error }); ok {
		_ = s.Reset() // a client that has not ended its half is not waited for
		<-up.done
	}
	return nil
}

// upward is what a client sends to an application.
type upward struct {
	conn *net.TCPConn
	used atomic.Int64 // when something was sent, in nanoseconds of the Unix time
	done chan struct{}
}

// Write implements io.Writer.
func (u *upward) Write(p []byte) (int, error) {
	u.used.Store(time.Now().UnixNano())
	n, err := u.conn.Write(p)
	u.used.Store(time.Now().UnixNano())
	return n, err
}

// run copies until the client's half ends, and looks from then on whether the client has gone, until ctx ends: to a reader a stream that
// was reset is like one that has ended, and to a writer as if it were there.
func (u *upward) run(ctx context.Context, stream io.Reader) {
	_, _ = io.Copy(u, stream)
	_ = u.conn.CloseWrite()
	close(u.done)
	s, ok := stream.(interface{ IsFinished() bool })
	if !ok {
		return
	}
	for wait := resetPoll / 100; ; wait = min(2*wait, resetPoll) {
		if s.IsFinished() { // this side has not finished it, or the application has ended
			_ = u.conn.Close()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// await waits until the client's half ends, or nothing was sent for the limit.
func (u *upward) await(ctx context.Context, limit time.Duration) {
	for {
		left := time.Until(time.Unix(0, u.used.Load()).Add(limit))
		if left <= 0 {
			return
		}
		select {
		case <-u.done:
			return
		case <-ctx.Done():
			return
		case <-time.After(left):
		}
	}
}

// dial connects to a port of the pod's loopback, IPv4 or else IPv6.
func dial(ctx context.Context, path string, port int32) (*net.TCPConn, error) {
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := dialIn(ctx, path, net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func dialIn(ctx context.Context, path, address string) (*net.TCPConn, error) {
	var conn net.Conn
	dialer := net.Dialer{Timeout: dialLimit}
	connect := func() (err error) {
		// A literal address is dialled by the calling goroutine.
		conn, err = dialer.DialContext(ctx, "tcp", address)
		return err
	}
	var err error
	if path == "" {
		err = connect()
	} else {
		err = netns.Do(path, func(*netlink.Handle) error { return connect() })
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
