package server

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/monitor"
)

// A command that ends with its container says so, in whichever order the two are killed; one that is killed alone does not.
func testContainerEnds(t *testing.T, f *fixture) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	execute := func(id string, args ...string) monitor.ExecResponse {
		end, err := f.ExecStreams(t.Context(), monitor.ExecRequest{ID: id, Grace: time.Second,
			Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}}, null, null, null)
		if err != nil {
			t.Error(err)
		}
		return end
	}
	kill := func(id string) error {
		return f.Signal(t.Context(), monitor.SignalRequest{ID: id, Signal: int(unix.SIGKILL), All: true})
	}
	ways := map[string]func(id string) error{
		"killed": kill,
		"exits": func(id string) error {
			return f.Signal(t.Context(), monitor.SignalRequest{ID: id, Signal: int(unix.SIGTERM)})
		},
	}
	for where, change := range pidNamespaces {
		for name, end := range ways {
			id := "a-" + name + "-" + where[:3]
			f.runIn(id, "trap 'exit 3' TERM; echo >/tmp/ready; while :; do sleep 0.05; done", change)
			await(t, "the trap is set", func() bool { _, err := os.Stat(f.dir + "/" + id + "/rootfs/tmp/ready"); return err == nil })
			if got := execute(id, "/bin/sh", "-c", "kill -KILL $$"); got != (monitor.ExecResponse{ExitCode: 137}) {
				t.Errorf("%s PID namespace, a command that kills itself: %+v", where, got)
			}
			answer := make(chan monitor.ExecResponse, 1)
			go func() { answer <- execute(id, "/bin/sleep", "77") }()
			await(t, "the command runs", func() bool { return f.runs(id, "/bin/sleep 77") })
			if err := end(id); err != nil {
				t.Fatal(err)
			}
			if got := <-answer; got != (monitor.ExecResponse{ExitCode: 137, ContainerEnded: true}) {
				t.Errorf("%s PID namespace, the container %s: %+v", where, name, got)
			}
		}
	}
}

// A command that is to outlive its client does, whether it has pipes or a terminal: it is not told, and may print as much as it likes.
func testOutlivesClient(t *testing.T, f *fixture) {
	f.runIn("a", "sleep 100", withTerminals)
	done := filepath.Join(f.dir, "a", "rootfs", "tmp", "done")
	// More than a pipe or a terminal holds.
	script := "echo begun; while [ ! -e /tmp/gone ]; do sleep 0.05; done; i=0; while [ $i -lt 100 ]; do seq 1 1000 || exit; i=$((i+1)); done; seq 1 2 >&2 && echo all >/tmp/done; sleep 0.2; exit"
	for _, terminal := range []bool{false, true} {
		for _, mark := range []string{"done", "gone"} {
			if err := os.RemoveAll(filepath.Join(f.dir, "a", "rootfs", "tmp", mark)); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req := monitor.ExecRequest{ID: "a", Grace: -1, Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: terminal}}
		ended := make(chan error, 1)
		var theirs *os.File // what the client reads from
		if terminal {
			console, err := monitor.NewConsole()
			if err != nil {
				t.Fatal(err)
			}
			defer console.Close()
			go func() {
				_, err := f.ExecTerminal(ctx, req, console.Socket)
				ended <- err
			}()
			if theirs, err = console.Receive(ctx); err != nil {
				t.Fatal(err)
			}
		} else {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, err := f.ExecStreams(ctx, req, w, w, w)
				_ = w.Close()
				ended <- err
			}()
			theirs = r
		}
		if n, err := theirs.Read(make([]byte, 100)); n == 0 {
			t.Fatalf("terminal %v: nothing is printed: %v", terminal, err)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("terminal %v: %v", terminal, err)
		}
		theirs.Close()
		if err := os.WriteFile(filepath.Join(f.dir, "a", "rootfs", "tmp", "gone"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		await(t, "it has printed all", func() bool { _, err := os.Stat(done); return err == nil })
		await(t, "it has ended", func() bool { return len(f.commands("a")) == 1 })
	}
	held := func() int {
		goruntime.GC() // pidfds
		fds, _ := os.ReadDir("/proc/self/fd")
		n := 0
		for _, fd := range fds {
			if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, "/dev/ptmx") || strings.HasPrefix(to, "/dev/pts/ptmx") {
				n++
			}
		}
		return n
	}
	await(t, "no terminal is kept", func() bool { return held() == 0 })
	// While its client is there, all is as ever.
	out := printed(t, f, monitor.ExecRequest{ID: "a", Grace: -1, Process: &specs.Process{
		Args: []string{"/bin/sh", "-c", "echo fine"}, Cwd: "/", Env: []string{"PATH=/bin"}}})
	if out != "fine\n" {
		t.Errorf("output %q", out)
	}
}

// printed runs a command to the end of its output.
func printed(t *testing.T, f *fixture, req monitor.ExecRequest) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = f.ExecStreams(t.Context(), req, w, w, w)
	w.Close()
	if err != nil {
		t.Error(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(out)
}

// The time of a command that cannot begin, since its container is frozen, is over as that of one that runs.
func TestExecInFrozenContainer(t *testing.T) {
	f := newFixture(t, nil)
	f.run("a", "sleep 100")
	path := "/" + cgroupRoot + "/a"
	if err := cgroup.Freeze(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, _, err := f.execute("a", 300*time.Millisecond, "true")
	if took := time.Since(begin); !errors.Is(err, monitor.ErrTimeout) || took > 5*time.Second {
		t.Errorf("after %s: %v", took, err)
	}
	if err := cgroup.Thaw(path); err != nil {
		t.Fatal(err)
	}
	if out, _, err := f.execute("a", 20*time.Second, "sh", "-c", "echo on"); out != "on\n" || err != nil {
		t.Errorf("thawed: %q, %v", out, err)
	}
}
