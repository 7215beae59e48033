package oom

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// The cause of a kill is known after the cgroup is gone.
func TestWatcherOutlivesTheCgroup(t *testing.T) {
	if os.Geteuid() != 0 || !hierarchy.Unified() {
		t.Skip("needs root and cgroup v2")
	}
	const name = "/criserver-oom-watch"
	dir := filepath.Join(hierarchy.Mountpoint, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if err := errors.Join(
		os.WriteFile(filepath.Join(hierarchy.Mountpoint, "cgroup.subtree_control"), []byte("+memory"), 0),
		os.WriteFile(filepath.Join(dir, "memory.max"), []byte("16777216"), 0),
	); err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0) // where there is swap
	w, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Add(name); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := cmd.Run(); err == nil {
		t.Fatal("dd was not killed")
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		w.mu.Lock()
		cause := w.causes[name]
		w.mu.Unlock()
		if cause != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no cause")
		}
		time.Sleep(time.Millisecond)
	}
	for os.Remove(dir) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the cgroup stays busy")
		}
	}
	if got := w.Take(name, true); got != "the memory limit of the container, 16777216 bytes, was reached" {
		t.Errorf("cause = %q", got)
	}
	if got := w.Take(name, true); got != "" || len(w.watched)+len(w.causes)+len(w.accounted) != 0 {
		t.Errorf("after Take it still knows %q, %v, %v, %v", got, w.watched, w.causes, w.accounted)
	}
}

// Where the cgroup went before the kernel's word came, the one above tells, less what is known of its siblings.
func TestWatcherAsksTheCgroupAbove(t *testing.T) {
	root := t.TempDir()
	write := func(cgroup string, kills int) {
		dir := filepath.Join(root, cgroup)
		if err := errors.Join(os.MkdirAll(dir, 0o755),
			os.WriteFile(filepath.Join(dir, "memory.events"), fmt.Appendf(nil, "max 3\noom_kill %d\n", kills), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("pod", 5)
	write("pod/a", 0)
	write("pod/b", 0)
	w := &Watcher{
		root: root, watched: map[int32]string{}, causes: map[string]string{"/pod/a": "", "/pod/b": "", "/pod/c": ""}, accounted: map[string]int64{"/pod": 5},
	}
	if got := w.Take("/pod/c", true); got != "" {
		t.Errorf("nothing was killed, but: %q", got)
	}
	write("pod", 7)
	write("pod/b", 1) // the other is of a, whose cgroup is gone
	if got := w.Take("/pod/a", true); got == "" {
		t.Error("the kill is not seen")
	}
	w.causes["/pod/d"] = ""
	if got := w.Take("/pod/d", true); got != "" {
		t.Errorf("a kill was taken twice: %q", got)
	}
	w.causes["/pod/b"] = "its own limit"
	if got := w.Take("/pod/b", true); got != "its own limit" || len(w.accounted) != 0 {
		t.Errorf("%q, %v", got, w.accounted)
	}
}
