package kill

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// testCgroup is this run's own: another one may be under way.
var testCgroup = fmt.Sprintf("/criserver-test-kill-%d", os.Getpid())

// newCgroup makes the cgroup, with one below it.
func newCgroup(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	if err := cgroup.Create(testCgroup + "/below"); err != nil {
		t.Fatal(err)
	}
	dir := Dir(testCgroup)
	t.Cleanup(func() {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			_ = Tree(dir)
			err := cgroup.Remove(testCgroup)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v: %s", err, Holders(dir))
			}
		}
	})
	return dir
}

// run starts a busybox shell in a cgroup.
func run(t *testing.T, path, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/busybox", "sh", "-c", "read x; "+script)
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		err = cgroup.Enter(path, cmd.Process.Pid)
	}
	if err == nil {
		_, err = in.Write([]byte("go\n"))
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	return cmd
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

func empty(t *testing.T, dir string) bool {
	t.Helper()
	pids, err := Pids(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(pids) == 0
}

// Each process forks the next one and ends: by the time a list is read it is out of date. One call gets them all.
func TestForkingForEver(t *testing.T) {
	dir := newCgroup(t)
	for range 4 {
		run(t, testCgroup+"/below", `export S='/bin/busybox sh -c "$S" & exit'; /bin/busybox sh -c "$S" & exit`)
	}
	time.Sleep(50 * time.Millisecond)
	before, _ := Pids(dir)
	time.Sleep(50 * time.Millisecond)
	if after, _ := Pids(dir); len(after) == 0 || fmt.Sprint(before) == fmt.Sprint(after) {
		t.Fatalf("the processes do not fork: %v, %v", before, after)
	}
	if err := Tree(dir); err != nil {
		t.Fatal(err)
	}
	await(t, "all are gone after one call", func() bool { return empty(t, dir) })
}

func TestFrozen(t *testing.T) {
	dir := newCgroup(t)
	run(t, testCgroup, "exec /bin/busybox sleep 100")
	run(t, testCgroup+"/below", "trap '' TERM; while :; do /bin/busybox sleep 1; done")
	for _, path := range []string{testCgroup + "/below", testCgroup} {
		if err := cgroup.Freeze(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	if err := Tree(dir); err != nil {
		t.Fatal(err)
	}
	await(t, "frozen processes are gone", func() bool { return empty(t, dir) })
}

// What is frozen from above ends with cgroup v2, and with v1 when it is let go up there; until then the holder is named.
func TestFrozenFromAbove(t *testing.T) {
	newCgroup(t)
	below := Dir(testCgroup + "/below")
	run(t, testCgroup+"/below", "exec /bin/busybox sleep 100")
	if err := cgroup.Freeze(t.Context(), testCgroup); err != nil {
		t.Fatal(err)
	}
	if err := Tree(below); err != nil {
		t.Fatal(err)
	}
	if !hierarchy.Unified() {
		if h, want := Holders(below), "cgroup "+testCgroup+" is frozen"; !strings.HasSuffix(h, want) {
			t.Errorf("holders = %q, want %q at the end", h, want)
		}
		for _, top := range []string{testCgroup + "/below", testCgroup + "-other"} { // it is not below these
			if err := cgroup.ThawUp(testCgroup+"/below", top); err != nil {
				t.Error(err)
			}
			if frozen, err := cgroup.Frozen(testCgroup); err != nil || !frozen {
				t.Errorf("let go up to %s, %s is not frozen any more, %v", top, testCgroup, err)
			}
		}
		if err := cgroup.ThawUp(testCgroup+"/below", testCgroup); err != nil {
			t.Error(err)
		}
	}
	await(t, "it ends", func() bool { return empty(t, below) })
}

// A PID that was listed may be another process's by the time it is killed.
func TestOthersLive(t *testing.T) {
	dir := newCgroup(t)
	other := run(t, testCgroup+"-other", "exec /bin/busybox sleep 100")
	defer func() {
		_ = other.Process.Kill()
		await(t, "the other cgroup can be removed", func() bool { return cgroup.Remove(testCgroup+"-other") == nil })
	}()
	if err := signal(dir, other.Process.Pid); err != nil {
		t.Error(err)
	}
	if err := signal(filepath.Dir(dir), other.Process.Pid); err != nil {
		t.Error(err)
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a process of another cgroup was killed: %v", err)
	}
	if !member(Dir(testCgroup+"-other"), other.Process.Pid) {
		t.Error("its own cgroup is not known as such")
	}
}

func TestNothingThere(t *testing.T) {
	dir := Dir("/criserver-test-nothing")
	if err := Tree(dir); err != nil {
		t.Error(err)
	}
	if h := Holders(dir); h != "" {
		t.Errorf("holders = %q", h)
	}
}

func TestHolders(t *testing.T) {
	dir := newCgroup(t)
	cmd := run(t, testCgroup, "for i in 1 2 3; do /bin/busybox sleep 100 & done; kill -STOP $$")
	want := fmt.Sprintf("process %d (busybox) is stopped", cmd.Process.Pid)
	await(t, "the stopped process comes first, and not all are named", func() bool {
		h := Holders(dir)
		return strings.HasPrefix(h, want) && strings.HasSuffix(h, ", and 1 more") && strings.Count(h, "(busybox)") == 3
	})
}
