package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"criserver/pkg/cni/netns"
)

const (
	dialLimit = 10 * time.Second
	// halfOpen is how long a client may go on sending to somebody who has said that he sends no more.
	halfOpen = time.Minute
)

// forward serves one connection of a client to a port.
func forward(ctx context.Context, op PortForward, port int32, stream io.ReadWriteCloser) error {
	conn, err := dial(ctx, op.NetNS, port)
	if err != nil {
		return fmt.Errorf("connect to port %d of pod %s: %w", port, op.Pod, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	up := make(chan struct{})
	go func() {
		defer close(up)
		_, _ = io.Copy(conn, stream)
		_ = conn.CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	_ = stream.Close() // what is sent from here on; what comes is still read
	if err != nil {
		return nil // it was reset, by one side or the other: that is between them
	}
	select {
	case <-up:
	case <-time.After(halfOpen):
	case <-ctx.Done():
	}
	return nil
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
