package score

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/kill"
)

const testCgroup = "/criserver-test-score"

// forking starts a shell in the cgroup that makes short-lived processes all the time.
func forking(t *testing.T, group string) *exec.Cmd {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.Command("/bin/sh", "-c", "read go; while :; do /bin/sh -c 'sleep 0.02; sleep 0.02' & sleep 0.005; done")
	cmd.Stdin = in
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	if group != "" {
		err = cgroup.Enter(group, cmd.Process.Pid)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// scores are those of processes that are there.
func scores(pids []int) (all []int) {
	for _, pid := range pids {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"))
		if n, nerr := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && nerr == nil {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func newCgroup(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	if err := cgroup.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 100 {
			if err = cgroup.Remove(path); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error(err)
	})
}

func TestSetAll(t *testing.T) {
	newCgroup(t, testCgroup)
	if err := SetAll(testCgroup, 500); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a cgroup without processes: %v", err)
	}
	for range 4 {
		forking(t, testCgroup)
	}
	checked := 0
	for n := range 20 {
		want := 300 + 20*n
		if err := SetAll(testCgroup, want); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			dir := kill.Dir(testCgroup)
			pids, err := kill.Pids(dir)
			got := scores(pids)
			// Not those that had ended before, and are only not gone yet.
			if slices.ContainsFunc(pids, func(pid int) bool { return !kill.Within(testCgroup, pid) }) {
				continue
			}
			checked++
			if err != nil || len(got) != 1 || got[0] != want {
				t.Fatalf("the processes have %v, %v, want %d", got, err, want)
			}
			time.Sleep(3 * time.Millisecond)
		}
	}
	if checked == 0 {
		t.Error("no moment without a process that ends was found")
	}
	if err := SetAll(testCgroup, -900); err != nil { // which may not be allowed, and is no error
		t.Error(err)
	}
	if err := SetAll(testCgroup+"/none", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a cgroup that is not there: %v", err)
	}
}

func TestSetTree(t *testing.T) {
	cmd := forking(t, "")
	pid := cmd.Process.Pid
	for deadline := time.Now().Add(10 * time.Second); len(children(pid)) < 3; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it makes no processes")
		}
	}
	if err := SetTree(pid, 444); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if got := scores(append(children(pid), pid)); len(got) != 1 || got[0] != 444 {
			t.Fatalf("the processes have %v", got)
		}
		time.Sleep(3 * time.Millisecond)
	}
	if got := scores([]int{os.Getpid()}); got[0] == 444 {
		t.Error("this process has it too")
	}
}
