package streaming

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	goruntime "runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// application listens on a loopback port and serves each connection.
func application(t *testing.T, address string, serve func(*net.TCPConn)) (port int32) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// dialSession opens a port-forward session by one of the clients' transports.
func (s *Server) dialSession(t *testing.T, transport string) httpstream.Connection {
	t.Helper()
	dialer := s.dialer(t, transport)
	conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

var transports = []string{"spdy", "websocket"}

func (s *Server) dialer(t *testing.T, transport string) httpstream.Dialer {
	t.Helper()
	token, err := s.tokens.issue(Operation{PortForward: &PortForward{Pod: "p"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	u := &url.URL{Scheme: s.scheme, Host: s.address, Path: pathPortForward + token}
	var dialer httpstream.Dialer
	if transport == "websocket" {
		dialer, err = portforward.NewSPDYOverWebsocketDialerForStreaming(u, &restclient.Config{})
	} else {
		trip, upgrader, tripErr := spdy.RoundTripperFor(&restclient.Config{})
		dialer, err = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: trip}, "POST", u), tripErr
	}
	if err != nil {
		t.Fatal(err)
	}
	return dialer
}

// connect opens a connection to a port in a session.
func connect(t *testing.T, conn httpstream.Connection, id int, port int32) (data, errs httpstream.Stream) {
	t.Helper()
	data, errs, err := tryConnect(conn, id, port)
	if err != nil {
		t.Fatal(err)
	}
	return data, errs
}

// tryConnect has an error stream also after an error of the other.
func tryConnect(conn httpstream.Connection, id int, port int32) (data, errs httpstream.Stream, err error) {
	h := http.Header{}
	h.Set("port", fmt.Sprint(port))
	h.Set("requestID", fmt.Sprint(id))
	h.Set("streamType", "error")
	if errs, err = conn.CreateStream(h); err != nil {
		return nil, nil, err
	}
	_ = errs.Close()
	h.Set("streamType", "data")
	data, err = conn.CreateStream(h)
	return data, errs, err
}

// forwards counts the connections that are being served.
func forwards() int {
	buf := make([]byte, 8<<20)
	stacks := string(buf[:goruntime.Stack(buf, true)])
	return strings.Count(stacks, "streaming.forward(") + strings.Count(stacks, "streaming.(*upward)")
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 15 s: %s", what)
		}
	}
}

// silent is an application that says nothing, and does not heed the end of what it is sent.
func silent(t *testing.T) (port int32) {
	t.Helper()
	end := make(chan struct{})
	port = application(t, "127.0.0.1:0", func(*net.TCPConn) { <-end })
	t.Cleanup(func() { close(end) })
	return port
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// pinged sends a byte, and gets it back.
func pinged(t *testing.T, s io.ReadWriter) {
	t.Helper()
	got := make(chan error, 1)
	go func() {
		_, err := io.WriteString(s, "x")
		if err == nil {
			_, err = io.ReadFull(s, make([]byte, 1))
		}
		got <- err
	}()
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("no answer")
	}
}

// An application that is silent does not hold a connection whose client has gone: with its session, or alone.
func TestForwardEndsWithItsClient(t *testing.T) {
	s := serve(t)
	quiet, echo := silent(t), application(t, "127.0.0.1:0", echo)
	for _, transport := range transports {
		conn := s.dialSession(t, transport)
		for i := range 4 {
			data, _ := connect(t, conn, i, quiet)
			if _, err := io.WriteString(data, "x"); err != nil {
				t.Fatal(err)
			}
			switch i {
			case 0:
				_ = data.Close() // half of it, and no more
			case 1:
				_ = data.Reset()
			}
		}
		other, _ := connect(t, conn, 10, echo)
		pinged(t, other)
		// Each is a goroutine that reads and one that writes.
		await(t, transport+": the streams that were reset have ended", func() bool { return forwards() == 4*2 })
		pinged(t, other)
		_ = conn.Close()
		await(t, transport+": nothing is left of the session", func() bool { return forwards() == 0 })
	}
}

// A connection that breaks, at either end, ends alone. One that is refused is told of on the error stream.
func TestForwardBrokenConnection(t *testing.T) {
	s := serve(t)
	breaking := application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0) // it is reset
	})
	echo := application(t, "[::1]:0", echo)
	for _, transport := range transports {
		conn := s.dialSession(t, transport)
		other, _ := connect(t, conn, 0, echo)
		pinged(t, other)
		for i := range 3 {
			data, errs := connect(t, conn, 1+i, breaking)
			_, _ = io.WriteString(data, "x")
			for what, stream := range map[string]io.Reader{"data": data, "error": errs} {
				if got, err := io.ReadAll(stream); err != nil || len(got) > 0 {
					t.Errorf("%s: %s stream of a broken connection: %q, %v", transport, what, got, err)
				}
			}
		}
		pinged(t, other)
		// The library resets the streams afterwards, the one for data maybe before it is there.
		_, errs, err := tryConnect(conn, 9, 1)
		if errs == nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(errs); err != nil || !strings.Contains(string(got), "connect to port 1 of pod p") {
			t.Errorf("%s: error stream of a refused connection: %q, %v", transport, got, err)
		}
		pinged(t, other)
		_ = conn.Close()
		await(t, transport+": nothing is left", func() bool { return forwards() == 0 })
	}
}

// clientOf is kubectl's side of a session.
func (s *Server) clientOf(t *testing.T, transport string, port int32) (address string) {
	t.Helper()
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddressesForStreaming(s.dialer(t, transport), []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	t.Cleanup(func() { close(stop); <-ended })
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
}

// kubectl goes on after a connection that broke, whichever end has broken it.
func TestForwardClientOutlivesBrokenConnections(t *testing.T) {
	s := serve(t)
	port := application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		b := make([]byte, 1)
		if _, err := c.Read(b); err == nil && b[0] == 'r' {
			_ = c.SetLinger(0)
			return
		}
		_, _ = c.Write(b)
		echo(c)
	})
	for _, transport := range transports {
		address := s.clientOf(t, transport, port)
		dial := func() *net.TCPConn {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c.(*net.TCPConn)
		}
		other := dial()
		pinged(t, other)
		for range 3 {
			there := dial()
			_, _ = io.WriteString(there, "r")
			if _, err := io.ReadAll(there); err != nil {
				t.Error(err)
			}
			here := dial()
			pinged(t, here)
			_ = here.SetLinger(0)
			_ = here.Close()
			pinged(t, other)
		}
	}
}

// Who sends to an application that sends no more may take his time, as long as he sends something.
func TestForwardHalfOpen(t *testing.T) {
	const limit = 500 * time.Millisecond
	got := make(chan []byte, 1)
	port := application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_ = c.CloseWrite()
		all, _ := io.ReadAll(c)
		got <- all
	})
	for _, pieces := range []int{10, 0} {
		in, feed := io.Pipe()
		stream := &fakeStream{Reader: in, reset: func() { _ = in.Close() }}
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- forward(t.Context(), PortForward{Pod: "p"}, port, stream, limit) }()
		for range pieces {
			time.Sleep(limit / 4)
			if _, err := io.WriteString(feed, "x"); err != nil {
				t.Fatalf("after %s: %v", time.Since(start), err)
			}
		}
		select {
		case err := <-done:
			if err != nil || time.Since(start) < limit {
				t.Errorf("after %s: %v", time.Since(start), err)
			}
		case <-time.After(10 * time.Second):
			t.Error("a client that sends nothing is waited for")
		}
		if all := <-got; len(all) != pieces {
			t.Errorf("%d bytes of %d", len(all), pieces)
		}
	}
}

// What a client has ended its half of it may give up afterwards.
func TestForwardIsGivenUp(t *testing.T) {
	stream := &fakeStream{Reader: strings.NewReader("all"), reset: func() {}}
	done := make(chan error, 1)
	go func() { done <- forward(t.Context(), PortForward{Pod: "p"}, silent(t), stream, time.Hour) }()
	select {
	case err := <-done:
		t.Fatalf("it ends with half of it: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	stream.finished.Store(true)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

// fakeStream is a client's that takes nothing.
type fakeStream struct {
	io.Reader
	reset    func()
	finished atomic.Bool
}

func (s *fakeStream) IsFinished() bool { return s.finished.Load() }

func (*fakeStream) Write(p []byte) (int, error) { return len(p), nil }
func (*fakeStream) Close() error                { return nil }
func (s *fakeStream) Reset() error              { s.reset(); return nil }
