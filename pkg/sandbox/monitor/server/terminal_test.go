package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/runtime"
)

// withTerminals lets a container have terminals.
func withTerminals(s *specs.Spec) {
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
		Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}})
}

// onTerminal gives it one.
func onTerminal(s *specs.Spec) {
	withTerminals(s)
	s.Process.Terminal = true
}

// screen is what has been printed on a terminal.
type screen struct {
	t *testing.T

	mu   sync.Mutex
	buf  bytes.Buffer
	done chan struct{} // closed at the end of the output
}

func newScreen(t *testing.T, r io.Reader) *screen {
	s := &screen{t: t, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(s, r) // the end of a terminal is EIO
	}()
	return s
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func (s *screen) sees(want string) {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(s.text(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("no %q on the screen: %q", want, s.text())
		}
	}
}

func typed(t *testing.T, master *os.File, text string) {
	t.Helper()
	if _, err := io.WriteString(master, text); err != nil {
		t.Fatal(err)
	}
}

func resize(t *testing.T, master *os.File, rows, columns uint16) {
	t.Helper()
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if err := unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// A person sits before a container's terminal, types, resizes, interrupts, and ends it.
func testTerminal(t *testing.T, f *fixture) {
	// Process 1 of a PID namespace gets no signal that it has no handler for.
	log := f.run("a", `trap : INT; /bin/tty; read line; /bin/stty size
		echo go to sleep; /bin/sleep 1000; echo code $?; while read line; do echo got $line; done; exit 5`, onTerminal)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	a, err := f.Attach(t.Context(), monitor.AttachRequest{ID: "a", Stdin: true}, w, null)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if !a.Terminal || a.Input == nil {
		t.Fatalf("attachment %+v, want a terminal", a)
	}
	defer a.Input.Close()
	seen := newScreen(t, r)
	resize(t, a.Input, 33, 99)
	typed(t, a.Input, "now\n")
	seen.sees("33 99")
	seen.sees("go to sleep")
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(seen.text(), "code 130"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("Ctrl-C does not interrupt: %q", seen.text())
		}
		typed(t, a.Input, "\x03") // the program may not be there yet
	}
	typed(t, a.Input, "this\n")
	seen.sees("got this")
	typed(t, a.Input, "\x04")
	if st := f.await("a"); st.ExitCode != 5 {
		t.Errorf("code = %d", st.ExitCode)
	}
	if end, err := a.Wait(t.Context()); err != nil || end.Lagged {
		t.Errorf("end of the attachment: %+v, %v", end, err)
	}
	if got := content(t, log); !strings.Contains(got, "/dev/pts/0\r\n") && !strings.Contains(got, "/dev/console\r\n") && !f.sandboxed() || // there no terminal has a name
		!strings.Contains(got, "got this\r\n") {
		t.Errorf("log = %q", got)
	}
}

// session is a command with a terminal.
type session struct {
	*screen
	master *os.File
	end    chan error
	resp   monitor.ExecResponse // once end has told
}

func (f *fixture) openSession(ctx context.Context, script string) *session {
	f.t.Helper()
	console, err := monitor.NewConsole()
	if err != nil {
		f.t.Fatal(err)
	}
	defer console.Close()
	s := &session{end: make(chan error, 1)}
	req := monitor.ExecRequest{ID: "a", Grace: 10 * time.Second, Process: &specs.Process{
		Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"},
		Terminal: true, ConsoleSize: &specs.Box{Height: 24, Width: 80}}}
	go func() {
		var err error
		s.resp, err = f.ExecTerminal(ctx, req, console.Socket)
		_ = console.Socket.Close() // which ends Receive
		s.end <- err
	}()
	receiving, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if s.master, err = console.Receive(receiving); err != nil {
		f.t.Fatalf("%v; the call: %v", err, <-s.end)
	}
	f.t.Cleanup(func() { s.master.Close() })
	s.screen = newScreen(f.t, s.master)
	return s
}

func (s *session) await() error {
	s.t.Helper()
	select {
	case err := <-s.end:
		return err
	case <-time.After(20 * time.Second):
		s.t.Fatalf("the command does not end: %q", s.text())
		return nil
	}
}

func testExecTerminal(t *testing.T, f *fixture) {
	f.run("a", "sleep 100", withTerminals)
	s := f.openSession(t.Context(), `/bin/tty; /bin/stty size; trap : INT; echo go to sleep; /bin/sleep 1000; echo code $?
		read line; /bin/stty size; exit 7`)
	if !f.sandboxed() {
		s.sees("/dev/pts/")
	}
	s.sees("24 80")
	s.sees("go to sleep")
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(s.text(), "code 130"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("Ctrl-C does not interrupt: %q", s.text())
		}
		typed(t, s.master, "\x03")
	}
	resize(t, s.master, 50, 132)
	typed(t, s.master, "\n")
	s.sees("50 132")
	if err := s.await(); err != nil || s.resp.ExitCode != 7 {
		t.Errorf("end = %+v, %v", s.resp, err)
	}
	<-s.done
	// Short ones are not cut off.
	for range 5 {
		s := f.openSession(t.Context(), "echo all of it")
		if err := s.await(); err != nil || s.resp.ExitCode != 0 {
			t.Errorf("end = %+v, %v", s.resp, err)
		}
		<-s.done
		if s.text() != "all of it\r\n" {
			t.Errorf("output = %q", s.text())
		}
	}
}

// The terminal hangs up when its client closes it, since nobody else holds it; a client that goes away otherwise has its command
// told so.
func testTerminalHangsUp(t *testing.T, f *fixture) {
	f.run("a", "sleep 100", withTerminals)
	s := f.openSession(t.Context(), "trap 'exit 9' HUP; echo ready; while :; do sleep 0.05; done")
	s.sees("ready")
	s.master.Close()
	if err := s.await(); err != nil || s.resp.ExitCode != 9 {
		t.Errorf("after the end of its terminal: %+v, %v", s.resp, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s = f.openSession(ctx, "trap 'echo told >/tmp/told; exit' HUP; echo ready; while :; do sleep 0.05; done")
	s.sees("ready")
	cancel()
	if err := s.await(); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	told := filepath.Join(f.dir, "a", "rootfs", "tmp", "told")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(told); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the command was not told that its client has gone")
		}
	}
}

func testTerminalErrors(t *testing.T, f *fixture) {
	err := f.tryRun("b", onTerminal, func(s *specs.Spec) { s.Process.Args = []string{"/no/such/program"} })
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("err = %v, want one that names the program", err)
	}
	f.checkForgotten("b")
	f.run("a", "sleep 100", withTerminals)
	console, err := monitor.NewConsole()
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	_, err = f.ExecTerminal(t.Context(), monitor.ExecRequest{ID: "a",
		Process: &specs.Process{Args: []string{"/no/such/program"}, Cwd: "/", Terminal: true}}, console.Socket)
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("err = %v, want one that names the program", err)
	}
	for _, dir := range []string{"a", "a/exec-*"} {
		left, err := filepath.Glob(filepath.Join(f.dir, "state", "oci", dir, "console"))
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// A runtime that does not send the terminal is not waited for for ever.
func TestRuntimeWithoutTerminal(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "runtime")
	script := `#!/bin/sh
for arg; do [ "$last" = --pid-file ] && echo $$ >"$arg"; last=$arg; done`
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, &runtime.Command{Path: program, Root: filepath.Join(dir, "root")})
	bundle := f.bundle("a", "exit 0", onTerminal)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := f.Create(ctx, monitor.CreateRequest{ID: "a", Bundle: bundle, Runtime: f.runtime})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(filepath.Join(f.dir, "state", "oci", "a")); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the terminal is still waited for")
		}
	}
}
