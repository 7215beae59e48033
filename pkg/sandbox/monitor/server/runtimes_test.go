package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/hierarchy"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/snapshot"
)

// suite is what each runtime must do.
var suite = []struct {
	name string
	test func(t *testing.T, f *fixture)
}{
	{"run to the end", testRunToTheEnd},
	{"output is whole at exit", testOutputIsWholeAtExit},
	{"killed by signal", testKilledBySignal},
	{"OOM kill", testOOMKill},
	{"exec", testExec},
	{"exec ends with its client", testExecEndsWithItsClient},
	{"timeout ends all", testTimeoutEndsAll},
	{"client gone, told to all", testClientGoneToldToAll},
	{"command fails after its start", testFailsAfterItsStart},
	{"container ends", testContainerEnds},
	{"outlives its client", testOutlivesClient},
	{"reopen log loses nothing", testReopenLogLosesNothing},
	{"errors", testErrors},
	{"orphans are reaped", testOrphansAreReaped},
	{"command not found", testCommandNotFound},
	{"command not executable at start", testNotExecutable},
	{"delete of a running container", testDeleteRunning},
	{"many at once", testManyAtOnce},
	{"terminal", testTerminal},
	{"terminal of a command", testExecTerminal},
	{"terminal hangs up", testTerminalHangsUp},
	{"errors with a terminal", testTerminalErrors},
}

func TestRuntimes(t *testing.T) {
	// Built by hack/deps.sh, the version of go.mod.
	newest, err := filepath.Abs("../../../../.cache/bin/runc")
	if err != nil {
		t.Fatal(err)
	}
	runsc := filepath.Join(filepath.Dir(newest), "runsc")
	for _, r := range []struct{ name, program string }{
		{"builtin", ""}, {"Debian's runc", "runc"}, {"newest runc", newest}, {"crun", "crun"}, {"runsc", runsc},
	} {
		t.Run(r.name, func(t *testing.T) {
			var args []string
			if r.program != "" {
				path, err := exec.LookPath(r.program)
				if err != nil {
					t.Skipf("it is not installed: %v", err)
				}
				r.program = path
			}
			if r.name == "crun" && !hierarchy.Unified() {
				// Its own refusal is the reason, not the mode.
				refusal := refusedBy(t, r.program)
				if strings.Contains(refusal, "hybrid") || strings.Contains(refusal, "cgroup") {
					t.Skip(refusal)
				}
			}
			if r.name == "runsc" {
				// The tests look at files from outside, where else a container's changes stay in its sandbox.
				args = []string{"--overlay2=none", "--file-access=shared", "--network=host"}
			}
			for _, s := range suite {
				t.Run(s.name, func(t *testing.T) {
					var c *runtime.Command
					if r.program != "" {
						c = &runtime.Command{Path: r.program, Root: filepath.Join(t.TempDir(), "root"), Args: args, Sandbox: r.name == "runsc"}
						t.Cleanup(func() { _ = snapshot.Unmount(filepath.Join(c.Root, "null-netns")) }) // runsc leaves it
					}
					s.test(t, newFixture(t, c))
				})
			}
		})
	}
}

// refusedBy tells why a runtime makes no container here, "" if it does.
func refusedBy(t *testing.T, program string) string {
	t.Helper()
	f := newFixture(t, &runtime.Command{Path: program, Root: filepath.Join(t.TempDir(), "root")})
	bundle := f.bundle("probe", "exit 0")
	_, err := f.Create(t.Context(), monitor.CreateRequest{ID: "probe", Bundle: bundle, Runtime: f.runtime})
	if err != nil {
		return err.Error()
	}
	if err := f.Delete(t.Context(), "probe", bundle); err != nil {
		t.Error(err)
	}
	return ""
}

// checkForgotten tells when something of a container is left.
func (f *fixture) checkForgotten(id string) {
	f.t.Helper()
	dirs := []string{filepath.Join(f.dir, "state", id), filepath.Join(f.dir, "state", "oci", id)}
	if f.runtime != nil {
		dirs = append(dirs, filepath.Join(f.runtime.Root, id))
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			f.t.Errorf("%s is left: %v", dir, err)
		}
	}
	if cgroup.Exists("/" + cgroupRoot + "/" + id) {
		f.t.Errorf("the cgroup of %s is left", id)
	}
}

// tryRun is run that tells of failure, wherever that comes.
func (f *fixture) tryRun(id string, change ...func(*specs.Spec)) error {
	bundle := f.bundle(id, "exit 0", change...)
	_, err := f.Create(f.t.Context(), monitor.CreateRequest{ID: id, Bundle: bundle, Runtime: f.runtime})
	if err == nil {
		_, err = f.Start(f.t.Context(), id)
		err = errors.Join(err, f.Delete(f.t.Context(), id, bundle))
	}
	return err
}

func testCommandNotFound(t *testing.T, f *fixture) {
	err := f.tryRun("a", func(s *specs.Spec) { s.Process.Args = []string{"/no/such/program"} })
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("err = %v, want one that names the program", err)
	}
	f.checkForgotten("a")
}

func testNotExecutable(t *testing.T, f *fixture) {
	err := f.tryRun("a", func(s *specs.Spec) { s.Process.Args = []string{"/tmp"} })
	// crun 1.8 does not name it.
	if err == nil || !strings.Contains(err.Error(), "/tmp") && !strings.Contains(err.Error(), "crun, ") {
		t.Errorf("err = %v, want one that names what is no program", err)
	}
	f.checkForgotten("a")
}

func testDeleteRunning(t *testing.T, f *fixture) {
	bundle := f.bundle("a", "trap '' TERM INT; sleep 100 & sleep 100")
	if _, err := f.Create(t.Context(), monitor.CreateRequest{ID: "a", Bundle: bundle, Runtime: f.runtime}); err != nil {
		t.Fatal(err)
	}
	st, err := f.Start(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Delete(t.Context(), "a", bundle); err != nil {
			t.Error(err)
		}
	}
	if err := unix.Kill(st.PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is there: %v", st.PID, err)
	}
	f.checkForgotten("a")
}

func testManyAtOnce(t *testing.T, f *fixture) {
	const many = 20
	bundles := make([]string, many)
	for i := range many {
		bundles[i] = f.bundle(fmt.Sprintf("c%02d", i), fmt.Sprintf("echo out; exit %d", i))
	}
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			id := fmt.Sprintf("c%02d", i)
			_, err := f.Create(t.Context(), monitor.CreateRequest{ID: id, Bundle: bundles[i],
				LogPath: filepath.Join(f.dir, id+".log"), Runtime: f.runtime})
			if err == nil {
				_, err = f.Start(t.Context(), id)
			}
			if err != nil {
				t.Errorf("container %s: %v", id, err)
			}
		})
	}
	wg.Wait()
	for i := range many {
		id := fmt.Sprintf("c%02d", i)
		if t.Failed() {
			break
		}
		if st := f.await(id); st.ExitCode != i {
			t.Errorf("code of %s = %d", id, st.ExitCode)
		}
		if got := content(t, filepath.Join(f.dir, id+".log")); got != "out\n" {
			t.Errorf("log of %s = %q", id, got)
		}
	}
	for i := range many {
		if err := f.Delete(context.Background(), fmt.Sprintf("c%02d", i), bundles[i]); err != nil {
			t.Error(err)
		}
	}
}

// What is left of a container whose crimonitor died is removed by the next one, also when its runtime is no more.
func TestDeleteByTheNextMonitor(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip(err)
	}
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("program gone %v", gone), func(t *testing.T) {
			dir := t.TempDir()
			program := filepath.Join(dir, "runc")
			if out, err := exec.Command("cp", runc, program).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			f := newFixture(t, &runtime.Command{Path: program, Root: filepath.Join(dir, "root")})
			f.run("a", "sleep 100")
			bundle := filepath.Join(f.dir, "a")
			st := f.stateOf("a")
			f.server.mu.Lock()
			delete(f.server.containers, "a") // as one that knows nothing but what is written down
			f.server.mu.Unlock()
			if gone {
				if err := os.Remove(program); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Delete(t.Context(), "a", bundle); err != nil {
				t.Fatal(err)
			}
			f.checkForgotten("a")
			for deadline := time.Now().Add(5 * time.Second); unix.Kill(st.PID, 0) == nil; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("process %d is there", st.PID)
				}
			}
		})
	}
}

// stateOf is what the monitor says of a container.
func (f *fixture) stateOf(id string) (st monitor.State) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	_ = f.Watch(ctx, func(e monitor.Event) {
		if e.State != nil && e.State.ID == id {
			st = *e.State
		}
		if e.Synced {
			cancel()
		}
	})
	return st
}

// A runtime that never answers is killed at the end of its time, and what it said is not lost before.
func TestRuntimeThatFails(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"words":  `while [ "$1" != --log ]; do shift; done; echo '{"level":"error","msg":"out of luck"}' >>"$2"; exit 1`,
		"plain":  "echo out of luck >&2; exit 1",
		"no pid": "exit 0",
	} {
		t.Run(name, func(t *testing.T) {
			program := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			f := newFixture(t, &runtime.Command{Path: program, Root: filepath.Join(dir, "root")})
			err := f.tryRun("a")
			if err == nil || !strings.Contains(err.Error(), map[string]string{"words": "out of luck", "plain": "exit status 1", "no pid": "PID"}[name]) {
				t.Errorf("err = %v", err)
			}
			f.checkForgotten("a")
		})
	}
	t.Run("hangs", func(t *testing.T) {
		program := filepath.Join(dir, "hang")
		if err := os.WriteFile(program, []byte("#!/bin/sh\ncase \"$*\" in *create*) sleep 300 & wait;; esac\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		f := newFixture(t, &runtime.Command{Path: program, Root: filepath.Join(dir, "root")})
		bundle := f.bundle("a", "exit 0")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := f.Create(ctx, monitor.CreateRequest{ID: "a", Bundle: bundle, Runtime: f.runtime}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Lstat(filepath.Join(f.dir, "state", "oci", "a")); os.IsNotExist(err) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the runtime is still called after %s", time.Since(start))
			}
		}
	})
}
