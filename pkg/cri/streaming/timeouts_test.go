package streaming

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// timed is a server with those timeouts.
func timed(t *testing.T, idle, creation time.Duration) *Server {
	t.Helper()
	dir := t.TempDir()
	return serveWith(t, Settings{Control: filepath.Join(dir, "c"), Monitor: filepath.Join(dir, "m"), Address: "127.0.0.1",
		Linger: time.Hour, Idle: idle, Creation: creation})
}

// closes waits for the end of a session.
func closes(t *testing.T, what string, conn httpstream.Connection, atLeast time.Duration) {
	t.Helper()
	start := time.Now()
	select {
	case <-conn.CloseChan():
		if took := time.Since(start); took < atLeast {
			t.Errorf("%s: it ends after %s", what, took)
		}
	case <-time.After(15 * time.Second):
		t.Errorf("%s: the session goes on", what)
	}
}

func (s *Server) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions
}

// A session in which nothing happens ends; one in which something does goes on.
func TestIdleTimeout(t *testing.T) {
	const idle = time.Second
	s := timed(t, idle, time.Minute)
	port := application(t, "127.0.0.1:0", echo)
	for _, transport := range transports {
		conn := s.dialSession(t, transport)
		data, _ := connect(t, conn, 0, port)
		for range 6 {
			pinged(t, data)
			time.Sleep(idle / 3)
		}
		closes(t, transport, conn, idle/3)
	}
	await(t, "no session is left", func() bool { return s.open() == 0 })
}

// Who does not open its streams has no session for long.
func TestCreationTimeout(t *testing.T) {
	const creation = 500 * time.Millisecond
	s := timed(t, time.Hour, creation)
	for _, transport := range transports {
		conn := s.dialSession(t, transport)
		h := http.Header{}
		h.Set("port", "1")
		h.Set("requestID", "0")
		h.Set("streamType", "error")
		errs, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		_ = errs.Close()
		start, said := time.Now(), make(chan string, 1)
		go func() {
			b := make([]byte, 1000)
			n, _ := io.ReadAtLeast(errs, b, 1)
			said <- string(b[:n])
		}()
		select {
		case text := <-said:
			if !strings.Contains(text, "timed out waiting for streams") || time.Since(start) < creation/2 {
				t.Errorf("%s: after %s: %q", transport, time.Since(start), text)
			}
		case <-time.After(15 * time.Second):
			t.Errorf("%s: the other stream is waited for", transport)
		}
		_ = conn.Close()
	}
	token, err := s.tokens.issue(Operation{Attach: &Attach{Container: "c", Streams: Streams{Stdin: true, Stdout: true}}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	trip, upgrader, err := spdy.RoundTripperFor(&restclient.Config{})
	if err != nil {
		t.Fatal(err)
	}
	u := &url.URL{Scheme: "http", Host: s.address, Path: pathAttach + token}
	conn, _, err := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: trip}, "POST", u).Dial("v4.channel.k8s.io")
	if err != nil {
		t.Fatal(fmt.Errorf("attach: %w", err))
	}
	defer conn.Close()
	closes(t, "attach", conn, creation/2)
	await(t, "no session is left", func() bool { return s.open() == 0 })
}
