package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
)

// inHostPIDs has a container in the PID namespace of the host: orphans come to the monitor, and its init takes nobody with it.
func inHostPIDs(s *specs.Spec) {
	s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
}

// pidNamespaces are the two kinds of containers.
var pidNamespaces = map[string]func(*specs.Spec){"its own": func(*specs.Spec) {}, "the host's": inHostPIDs}

// runIn is run for a container whose cgroup the monitor is told, as the daemon does; its name is not to be in any other test's command.
func (f *fixture) runIn(id, script string, change ...func(*specs.Spec)) {
	f.t.Helper()
	bundle := f.bundle(id, script, change...)
	_, err := f.Create(f.t.Context(), monitor.CreateRequest{ID: id, Bundle: bundle, Runtime: f.runtime, Cgroup: "/" + cgroupRoot + "/" + id})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := f.Delete(context.Background(), id, bundle); err != nil {
			f.t.Error(err)
		}
	})
	if _, err := f.Start(f.t.Context(), id); err != nil {
		f.t.Fatal(err)
	}
}

// commands are the processes of a container as "program argument".
func (f *fixture) commands(id string) []string {
	f.t.Helper()
	var all []string
	if f.sandboxed() {
		out, _, err := f.execute(id, 0, "sh", "-c", `for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || { cat $p/cmdline; echo; }; done`)
		if err != nil {
			f.t.Log(err)
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(strings.ReplaceAll(line, "\x00", " ")); line != "" {
				all = append(all, line)
			}
		}
		return all
	}
	tr := &tree{command: &process{}, cgroup: "/" + cgroupRoot + "/" + id}
	for _, pid := range tr.candidates()[1:] {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err == nil && len(data) > 0 {
			all = append(all, strings.TrimSpace(strings.ReplaceAll(string(data), "\x00", " ")))
		}
	}
	return all
}

// runs tells whether one of a container's processes is that command.
func (f *fixture) runs(id, command string) bool {
	for _, c := range f.commands(id) {
		if c == command {
			return true
		}
	}
	return false
}

// await waits for a condition.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

// escapes are ways by which a process gets away from the command that has started it.
var escapes = map[string]string{
	"child":                 "sleep 66 & sleep 55",
	"orphan":                "(sleep 66 >/dev/null 2>&1 &); sleep 55",
	"session":               "setsid sleep 66 >/dev/null 2>&1 & sleep 55",
	"orphan with a session": "(setsid sleep 66 &); sleep 55",
	"stopped":               "sleep 66 & kill -STOP $!; sleep 55",
}

// A command whose time is over ends with all that it has started, and the container's own processes, and those of other commands,
// stay.
func testTimeoutEndsAll(t *testing.T, f *fixture) {
	for where, change := range pidNamespaces {
		if f.runtime != nil && where != "its own" {
			continue // the same code serves both
		}
		id := "a" + strconv.Itoa(len(where))
		f.runIn(id, "(setsid sleep 77 &); sleep 78", change)
		other, cancel := context.WithCancel(t.Context())
		defer cancel()
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		go func() {
			p := &specs.Process{Args: []string{"/bin/sh", "-c", "(sleep 79 &); sleep 80"}, Cwd: "/", Env: []string{"PATH=/bin"}}
			_, _ = f.Exec(other, monitor.ExecRequest{ID: id, Process: p}, null, null, null)
		}()
		stay := []string{"sleep 77", "sleep 78", "sleep 79", "sleep 80"}
		for _, c := range stay {
			await(t, c+" runs", func() bool { return f.runs(id, c) })
		}
		for name, script := range escapes {
			if f.sandboxed() && name == "orphan with a session" {
				continue // it is not to be told from the container's own
			}
			_, _, err := f.execute(id, 500*time.Millisecond, "sh", "-c", script)
			if !errors.Is(err, monitor.ErrTimeout) {
				t.Errorf("%s, in %s PID namespace: %v", name, where, err)
			}
			await(t, name+": all have ended", func() bool { return !f.runs(id, "sleep 66") && !f.runs(id, "sleep 55") })
		}
		for _, c := range stay {
			if !f.runs(id, c) {
				t.Errorf("in %s PID namespace: %q has ended too: %v", where, c, f.commands(id))
			}
		}
	}
}

// Who forks while it is killed does not get away.
func TestTimeoutEndsForkers(t *testing.T) {
	f := newFixture(t, nil)
	f.runIn("a", "sleep 100")
	_, _, err := f.execute("a", 300*time.Millisecond, "sh", "-c", `export S='sh -c "$S" & exit'; for i in 1 2 3; do sh -c "$S" & done; sleep 55`)
	if !errors.Is(err, monitor.ErrTimeout) {
		t.Error(err)
	}
	await(t, "the forkers have ended", func() bool { return len(f.commands("a")) == 1 })
}

// What a command has started is told that the client has gone. It may ignore that, and outlive the command then.
func testClientGoneToldToAll(t *testing.T, f *fixture) {
	f.runIn("a", "sleep 100")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		p := &specs.Process{Args: []string{"/bin/sh", "-c", "(sleep 66 &); (trap '' HUP; sleep 67 &); sleep 68 & sleep 0.3; kill -STOP $!; sleep 55"},
			Cwd: "/", Env: []string{"PATH=/bin"}}
		_, err := f.Exec(ctx, monitor.ExecRequest{ID: "a", Process: p, Grace: time.Minute}, null, null, null)
		ended <- err
	}()
	for _, c := range []string{"sleep 66", "sleep 67", "sleep 68", "sleep 55"} {
		await(t, c+" runs", func() bool { return f.runs("a", c) })
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	await(t, "all but one have ended", func() bool { return len(f.commands("a")) == 2 })
	if !f.runs("a", "sleep 67") {
		t.Errorf("left: %v", f.commands("a"))
	}
}

// What an OCI runtime has made of a command does not run on when the runtime says that it has failed.
func testFailsAfterItsStart(t *testing.T, f *fixture) {
	if f.runtime == nil {
		t.Skip("the built-in runtime executes no program")
	}
	program := f.runtime.Path
	failing, mark := filepath.Join(f.dir, "failing"), filepath.Join(f.dir, "mark")
	script := fmt.Sprintf("#!/bin/sh\n%s \"$@\"; code=$?\nfor a; do [ \"$a\" = exec ] && [ -e %s ] && exit 3; done\nexit $code\n", program, mark)
	if err := errors.Join(os.WriteFile(failing, []byte(script), 0o755), os.WriteFile(mark, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	f.runtime.Path = failing
	f.runIn("a", "sleep 100")
	if _, _, err := f.execute("a", 0, "sleep", "300"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a runtime that fails: %v", err)
	}
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	await(t, "the command has ended", func() bool { return f.runs("a", "sleep 100") && !f.runs("a", "sleep 300") })
}

// A process that was looked at and has ended is not mistaken for another one.
func TestTreeOfNothing(t *testing.T) {
	tr := &tree{command: &process{pid: os.Getpid()}, init: os.Getpid()}
	if n := tr.grow(map[int]int{}, unix.Signal(0)); n != 0 {
		t.Errorf("%d processes belong to the container's init", n)
	}
}
