package streaming

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

// logged are the lines of a test that tell of a refusal. Other tests log too.
func logged(hook *logtest.Hook, reason refusal) []*logrus.Entry {
	var lines []*logrus.Entry
	for _, e := range hook.AllEntries() {
		if e.Level == logrus.WarnLevel && strings.HasSuffix(e.Message, string(reason)) {
			lines = append(lines, e)
		}
	}
	return lines
}

// Whoever is refused is logged, with the address and without the token.
func TestRefusalsAreLogged(t *testing.T) {
	hook := logtest.NewGlobal()
	s := serve(t)
	issue := func(at time.Time) string {
		token, err := s.tokens.issue(Operation{Exec: &Exec{Container: "c"}}, at)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good, old := issue(time.Now()), issue(time.Now().Add(-tokenLife-time.Second))
	for _, test := range []struct {
		method, path string
		code         int
		reason       refusal
	}{
		{http.MethodPut, pathExec + good, http.StatusMethodNotAllowed, refusedMethod},
		{http.MethodHead, pathExec + good, http.StatusMethodNotAllowed, refusedMethod},
		{http.MethodGet, pathAttach + good, http.StatusNotFound, refusedToken}, // another operation's, and used by that
		{http.MethodGet, pathExec + good, http.StatusNotFound, refusedToken},
		{http.MethodPost, pathExec + old, http.StatusNotFound, refusedToken},
		{http.MethodGet, pathExec + "guessed", http.StatusNotFound, refusedToken},
		{http.MethodGet, "/metrics", http.StatusNotFound, refusedPath},
	} {
		before := len(logged(hook, test.reason))
		req, err := http.NewRequestWithContext(t.Context(), test.method, "http://"+s.address+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != test.code {
			t.Errorf("%s %s: %s", test.method, test.path, resp.Status)
		}
		lines := logged(hook, test.reason)
		if len(lines) != before+1 {
			t.Fatalf("%s %s: %d lines are logged", test.method, test.path, len(lines)-before)
		}
		if client, _ := lines[before].Data["client"].(string); !strings.HasPrefix(client, "127.0.0.1:") {
			t.Errorf("the client is %q", client)
		}
		for _, token := range []string{good, old} {
			if text, err := lines[before].String(); err != nil || strings.Contains(text, token) {
				t.Errorf("%v: the token is logged: %s", err, text)
			}
		}
	}
	if got := s.tokens.younger(tokenLife, time.Now()); got != 0 {
		t.Errorf("%d tokens are left", got)
	}
}

// Who says nothing in time, or half of it, is logged; who has asked and then rests, is not.
func TestSlowClientsAreLogged(t *testing.T) {
	t.Parallel()
	hook := logtest.NewGlobal()
	s := serve(t)
	var slow []string
	for _, request := range []string{"", "GET /exec/x", "GET /exec/x HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprint(c, request); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, c.LocalAddr().String())
		defer func() {
			_ = c.SetReadDeadline(time.Now().Add(2*headerLimit + 3*time.Second))
			_, _ = io.Copy(io.Discard, c) // until the server has closed it
		}()
	}
	of := func(client string) (n int) {
		for _, e := range logged(hook, refusedSlow) {
			if e.Data["client"] == client {
				n++
			}
		}
		return n
	}
	await(t, "slow clients are logged", func() bool { return of(slow[0]) == 1 && of(slow[1]) == 1 })
	if of(slow[2]) != 0 {
		t.Error("a client that has asked is logged as slow")
	}
}

// Of connections above the limit the first is logged, and they are served when others end.
func TestFullServer(t *testing.T) {
	hook := logtest.NewGlobal()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(inner, 2, &refusals{})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	accept := func() net.Conn {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		return c
	}
	dial()
	dial()
	first, second := accept(), accept()
	third := dial()
	got := make(chan net.Conn, 1)
	go func() { got <- accept() }()
	await(t, "the third connection is logged", func() bool { return len(logged(hook, refusedFull)) == 1 })
	if client := logged(hook, refusedFull)[0].Data["client"]; client != third.LocalAddr().String() {
		t.Errorf("the client is %v", client)
	}
	_, _ = first.Close(), first.Close() // its place is given once
	select {
	case c := <-got:
		defer c.Close()
	case <-time.After(10 * time.Second):
		t.Fatal("the third connection is not served")
	}
	// A listener that waits for a place can be closed.
	dial()
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	await(t, "the fourth waits", func() bool { return len(logged(hook, refusedFull)) == 2 })
	_ = l.Close()
	if err := <-ended; err == nil {
		t.Error("a closed listener has accepted")
	}
	_ = second.Close()
}

// However many are refused, the log stays small, and tells how many it leaves out.
func TestRefusalsAreBounded(t *testing.T) {
	hook := logtest.NewGlobal()
	var r refusals
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				r.log(refusedToken, "10.0.0.1:1", nil)
			}
		})
	}
	all.Wait()
	lines := logged(hook, refusedToken)
	if len(lines) != refusedFirst {
		t.Errorf("%d lines", len(lines))
	}
	if n := r.kinds[refusedToken].unsaid; n != 8000-refusedFirst {
		t.Errorf("%d were counted", n)
	}
	r.log(refusedPath, "10.0.0.1:1", nil) // another reason has lines of its own
	if len(logged(hook, refusedPath)) != 1 {
		t.Error("another refusal is not logged")
	}
	r.kinds[refusedToken].turn.Interval = time.Nanosecond
	r.log(refusedToken, "10.0.0.1:1", nil)
	if lines = logged(hook, refusedToken); lines[len(lines)-1].Data["others"] != 8000-refusedFirst {
		t.Errorf("the next line: %v", lines[len(lines)-1].Data)
	}
}

// serveTLS runs a server with TLS for the test.
func serveTLS(t *testing.T, c TLS) *Server {
	t.Helper()
	dir := t.TempDir()
	return serveWith(t, Settings{Control: filepath.Join(dir, "c"), Monitor: filepath.Join(dir, "m"), Address: "127.0.0.1",
		Linger: time.Hour, Idle: time.Hour, Creation: time.Minute, TLS: c})
}

func TestFailedHandshakesAreLogged(t *testing.T) {
	hook := logtest.NewGlobal()
	s := serveTLS(t, TLS{Generate: true})
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\nwhat a TLS record is not"); err != nil {
		t.Fatal(err)
	}
	await(t, "the handshake is logged", func() bool { return len(logged(hook, refusedTLS)) > 0 })
	line := logged(hook, refusedTLS)[0]
	if line.Data["client"] != c.LocalAddr().String() || line.Data["why"] == "" {
		t.Errorf("%v", line.Data)
	}
}
