package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/runtime/builtin"
	"criserver/pkg/sandbox/runtime/oci"
)

// The test binary is executed again as the init process of its containers, as crimonitor is.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}

const busybox = "/bin/busybox"

// fixture is a monitor in this process and a directory for its containers.
type fixture struct {
	*monitor.Client
	t      *testing.T
	dir    string
	server *Server
	// runtime is that of its containers; nil is the built-in one.
	runtime *runtime.Command
}

func newFixture(t *testing.T, c *runtime.Command) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	s := New(&oci.Set{Dir: filepath.Join(state, "oci"), Builtin: builtin.New(state)}, "test", false)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if left, err := cgroup.Children("/" + cgroupRoot); err != nil || len(left) > 0 {
			t.Errorf("cgroups are left: %v, %v", left, err)
		}
		cgroup.Prune("/" + cgroupRoot)
	})
	return &fixture{Client: monitor.NewClient(socket), t: t, dir: dir, server: s, runtime: c}
}

// cgroupRoot is this run's own: another one may be under way.
var cgroupRoot = fmt.Sprintf("criserver-test-monitor-%d", os.Getpid())

// sandboxed: its containers have a kernel of their own.
func (f *fixture) sandboxed() bool { return f.runtime != nil && f.runtime.Sandbox }

// bundle makes a container directory whose process is a busybox shell that runs the script.
func (f *fixture) bundle(id, script string, change ...func(*specs.Spec)) string {
	f.t.Helper()
	dir := filepath.Join(f.dir, id)
	for _, d := range []string{"rootfs/bin", "rootfs/proc", "rootfs/dev", "rootfs/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	if f.sandboxed() { // runsc has a tmpfs of its own on an empty /tmp
		if err := os.WriteFile(filepath.Join(dir, "rootfs/tmp/kept"), nil, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", busybox, filepath.Join(dir, "rootfs/bin/sh")).CombinedOutput(); err != nil {
		f.t.Fatalf("copy busybox (package busybox-static): %v: %s", err, out)
	}
	for _, applet := range []string{"sleep", "cat", "seq", "head", "printf", "dd", "kill", "setsid", "stty", "tty"} {
		if err := os.Link(filepath.Join(dir, "rootfs/bin/sh"), filepath.Join(dir, "rootfs/bin", applet)); err != nil {
			f.t.Fatal(err)
		}
	}
	spec := &specs.Spec{
		Version: "1.0.2", // crun 1.8 knows no later one
		Root:    &specs.Root{Path: filepath.Join(dir, "rootfs")},
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + cgroupRoot + "/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
		},
	}
	for _, fn := range change {
		fn(spec)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return dir
}

// run creates and starts a container, and deletes it when the test ends.
func (f *fixture) run(id, script string, change ...func(*specs.Spec)) (logPath string) {
	f.t.Helper()
	ctx := f.t.Context()
	bundle := f.bundle(id, script, change...)
	logPath = filepath.Join(f.dir, id+".log")
	if _, err := f.Create(ctx, monitor.CreateRequest{ID: id, Bundle: bundle, LogPath: logPath, Runtime: f.runtime}); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := f.Delete(context.Background(), id, bundle); err != nil {
			f.t.Error(err)
		}
	})
	if _, err := f.Start(ctx, id); err != nil {
		f.t.Fatal(err)
	}
	return logPath
}

// await watches until the container has exited.
func (f *fixture) await(id string) monitor.State {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	var got monitor.State
	err := f.Watch(ctx, func(e monitor.Event) {
		if e.State != nil && e.State.ID == id && e.State.Phase == monitor.PhaseExited {
			got = *e.State
			cancel()
		}
	})
	if got.ID == "" {
		f.t.Fatalf("container %s did not exit: %v", id, err)
	}
	return got
}

// content is a log without its stamps; partial lines are joined as the kubelet's reader does.
func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(parts) != 4 {
			t.Fatalf("no CRI log entry: %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, parts[0]); err != nil {
			t.Fatal(err)
		}
		out.WriteString(parts[3])
		if parts[2] == "F" {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

func testRunToTheEnd(t *testing.T, f *fixture) {
	before := time.Now()
	log := f.run("a", "echo out; echo err >&2; printf tail; exit 7")
	st := f.await("a")
	if st.ExitCode != 7 || st.OOMKilled || st.StartedAt.Before(before) || st.ExitedAt.Before(st.StartedAt) {
		t.Errorf("state = %+v", st)
	}
	data, _ := os.ReadFile(log)
	for _, want := range []string{" stdout F out\n", " stderr F err\n", " stdout P tail\n"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("log lacks %q:\n%s", want, data)
		}
	}
}

func testOutputIsWholeAtExit(t *testing.T, f *fixture) {
	const lines = 50_000
	log := f.run("a", fmt.Sprintf("seq 1 %d", lines))
	f.await("a")
	var want bytes.Buffer
	for i := range lines {
		fmt.Fprintln(&want, i+1)
	}
	if got := content(t, log); got != want.String() {
		t.Errorf("log has %d bytes, want %d", len(got), want.Len())
	}
}

func testKilledBySignal(t *testing.T, f *fixture) {
	log := f.run("a", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
	// Until the trap is set, the kernel keeps the signal from process 1 of a PID namespace.
	for deadline := time.Now().Add(10 * time.Second); content(t, log) == ""; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the workload printed nothing")
		}
	}
	if err := f.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: int(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	if st := f.await("a"); st.ExitCode != 9 {
		t.Errorf("code = %d, want 9 of the trap", st.ExitCode)
	}
	err := f.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: int(unix.SIGTERM)})
	if !errors.Is(err, monitor.ErrNotRunning) {
		t.Errorf("signal after the exit: %v", err)
	}
	f.run("b", "sleep 100 & sleep 100")
	if err := f.Signal(t.Context(), monitor.SignalRequest{ID: "b", Signal: int(unix.SIGKILL), All: true}); err != nil {
		t.Fatal(err)
	}
	if st := f.await("b"); st.ExitCode != 137 {
		t.Errorf("code = %d, want 137", st.ExitCode)
	}
}

func TestSignalAfterReaping(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := openProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !p.alive() {
		t.Error("a process that nobody has reaped is gone")
	}
	p.wait()
	if p.alive() {
		t.Error("a process that was reaped is there")
	}
	if err := p.signal(unix.SIGTERM); err != nil {
		t.Errorf("signal to a process that is gone: %v", err)
	}
}

func testOOMKill(t *testing.T, f *fixture) {
	limit := int64(8 << 20)
	if f.sandboxed() {
		limit = 48 << 20
	}
	f.run("a", "head -c 64m /dev/zero | tail", func(s *specs.Spec) {
		s.Process.Args = []string{"/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"}
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	})
	if st := f.await("a"); !st.OOMKilled || st.ExitCode != 137 {
		t.Errorf("state = %+v, want an OOM kill", st)
	}
}

func (f *fixture) execute(id string, timeout time.Duration, args ...string) (string, int, error) {
	f.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	null, _ := os.Open(os.DevNull)
	defer null.Close()
	code, err := f.Exec(f.t.Context(), monitor.ExecRequest{ID: id, Timeout: timeout,
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}}, null, w, w)
	_ = w.Close()
	_ = r.SetReadDeadline(time.Now().Add(2 * time.Second))
	out, _ := io.ReadAll(r)
	return string(out), code, err
}

func testExec(t *testing.T, f *fixture) {
	f.run("a", "sleep 100")
	if out, code, err := f.execute("a", 0, "sh", "-c", "echo hi; exit 3"); out != "hi\n" || code != 3 || err != nil {
		t.Errorf("exec = %q, %d, %v", out, code, err)
	}
	if _, _, err := f.execute("a", 0, "/no/such"); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("exec of nothing: %v", err)
	}
	start := time.Now()
	if _, _, err := f.execute("a", 200*time.Millisecond, "sh", "-c", "sleep 50 & sleep 50"); !errors.Is(err, monitor.ErrTimeout) {
		t.Errorf("timeout: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the timeout took %s", d)
	}
	if out, _, _ := f.execute("a", 0, "sh", "-c", "for p in /proc/[0-9]*; do cat $p/cmdline; done"); strings.Contains(out, "sleep\x0050") {
		t.Errorf("a process outlived the timeout: %q", out)
	}
}

func testExecEndsWithItsClient(t *testing.T, f *fixture) {
	f.run("a", "sleep 100")
	null, _ := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	defer null.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := f.Exec(ctx, monitor.ExecRequest{ID: "a", Process: &specs.Process{Args: []string{"/bin/sleep", "77"}, Cwd: "/"}}, null, null, null)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("err = %v", err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, _, err := f.execute("a", 0, "sh", "-c", "for p in /proc/[0-9]*; do cat $p/cmdline; done")
		if err == nil && !strings.Contains(out, "sleep\x0077") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the command outlived its client: %q, %v", out, err)
		}
	}
}

func testReopenLogLosesNothing(t *testing.T, f *fixture) {
	const lines = 20_000
	log := f.run("a", fmt.Sprintf("seq 1 %d", lines))
	for i := range 5 {
		if err := os.Rename(log, fmt.Sprintf("%s.%d", log, i)); err != nil {
			t.Fatal(err)
		}
		if err := f.ReopenLog(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	f.await("a")
	var got string
	for i := range 5 {
		got += content(t, fmt.Sprintf("%s.%d", log, i))
	}
	got += content(t, log)
	if n := strings.Count(got, "\n"); n != lines {
		t.Errorf("%d lines in all files, want %d", n, lines)
	}
}

func testErrors(t *testing.T, f *fixture) {
	ctx := t.Context()
	bundle := f.bundle("a", "exit 0")
	if _, err := f.Start(ctx, "nobody"); !errors.Is(err, monitor.ErrNotFound) {
		t.Errorf("start of an unknown container: %v", err)
	}
	if err := f.Delete(ctx, "nobody", filepath.Join(f.dir, "nothing")); err != nil {
		t.Errorf("delete of an unknown container: %v", err)
	}
	if _, err := f.Create(ctx, monitor.CreateRequest{ID: "a", Bundle: bundle, Runtime: f.runtime}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create(ctx, monitor.CreateRequest{ID: "a", Bundle: bundle, Runtime: f.runtime}); !errors.Is(err, monitor.ErrExists) {
		t.Errorf("second create: %v", err)
	}
	if err := f.Shutdown(ctx); !errors.Is(err, monitor.ErrBusy) {
		t.Errorf("shutdown with a container: %v", err)
	}
	for range 2 {
		if err := f.Delete(ctx, "a", bundle); err != nil {
			t.Error(err)
		}
	}
	// Whatever fails in the set-up leaves nothing.
	bad := f.bundle("b", "exit 0", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Source: "/no/such/source", Type: "bind", Options: []string{"bind"}})
	})
	if _, err := f.Create(ctx, monitor.CreateRequest{ID: "b", Bundle: bad, Runtime: f.runtime}); err == nil || !strings.Contains(err.Error(), "/no/such/source") {
		t.Errorf("create with a missing mount source: %v", err)
	}
	f.checkForgotten("b")
}

func TestRefusesAnotherProtocol(t *testing.T) {
	f := newFixture(t, nil)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(f.dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := monitor.WriteFrame(conn, monitor.Request{Protocol: 99, Method: monitor.MethodInfo}); err != nil {
		t.Fatal(err)
	}
	var resp monitor.Response
	if _, err := monitor.ReadFrame(conn, &resp); err != nil {
		t.Fatal(err)
	}
	if resp.Code != "protocol" || !strings.Contains(resp.Message, "99") {
		t.Errorf("answer = %+v", resp)
	}
}

func testOrphansAreReaped(t *testing.T, f *fixture) {
	// In the host's PID namespace an orphan comes to the subreaper, this process.
	f.run("a", "(sleep 0.1 & echo) ; sleep 100", func(s *specs.Spec) {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	})
	for deadline := time.Now().Add(15 * time.Second); len(zombies()) > 0 || time.Until(deadline) > 11*time.Second; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("zombies are left: %v", zombies())
		}
	}
}
