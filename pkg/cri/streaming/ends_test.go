package streaming

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve runs a server for the test.
func serve(t *testing.T) *Server {
	t.Helper()
	dir := t.TempDir()
	return serveWith(t, Settings{Control: filepath.Join(dir, "c"), Monitor: filepath.Join(dir, "m"), Address: "127.0.0.1", Linger: time.Hour, Idle: time.Hour, Creation: time.Minute})
}

func serveWith(t *testing.T, settings Settings) *Server {
	t.Helper()
	s, err := NewServer(settings)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// A connection without a session holds a place among maxConnections; nobody may keep it.
func TestConnectionsWithoutSessionEnd(t *testing.T) {
	s := serve(t)
	for name, request := range map[string]string{
		"nothing":      "",
		"half a line":  "GET /exec/x",
		"kept alive":   "GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n",
		"without body": "POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", s.address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := fmt.Fprint(c, request); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(2*headerLimit + 3*time.Second))
			var got bytes.Buffer
			if _, err := got.ReadFrom(c); err != nil && isTimeout(err) {
				t.Errorf("the connection is still open; it has answered %q", got.String())
			}
		})
	}
}

// One who goes on printing after the process has ended is not a client that does not read.
func TestOutputEndsThoughOthersPrint(t *testing.T) {
	t.Parallel()
	var got strings.Builder
	o, err := newOutput(func() {}, &got)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	descendant, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", o.w.Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer descendant.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(quiet / 4):
				_, _ = fmt.Fprintln(descendant, "x")
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 3*othersLimit)
	defer cancel()
	if o.finish(ctx); ctx.Err() != nil {
		t.Error("the output is still awaited")
	}
}

// A descendant may keep stdin without reading it.
func TestInputEndsWithItsSession(t *testing.T) {
	t.Parallel()
	r, feed, err := openInput(bytes.NewReader(nil))
	if err != nil {
		t.Fatal(err)
	}
	descendant, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer descendant.Close()
	done := make(chan error, 1)
	go func() {
		_, err := feed.Write(make([]byte, 1<<20))
		done <- err
	}()
	time.Sleep(100 * time.Millisecond) // until the pipe is full
	_, _ = r.Close(), feed.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("all was written")
		}
	case <-time.After(5 * time.Second):
		t.Error("the writer still waits")
	}
}
