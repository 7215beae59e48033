package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const executesItself = "CRISERVER_TEST_EXECUTES_ITSELF"

// init is a program of several threads that executes itself again and again, as a container's init does once.
func init() {
	if os.Getenv(executesItself) == "" {
		return
	}
	go func() { select {} }()
	_ = unix.Exec("/proc/self/exe", os.Args, os.Environ())
	os.Exit(1)
}

// TestFreezeWhileItExecutes: with cgroup v1 a program that is being executed waits for its other threads, which are frozen, and cannot be
// frozen itself.
func TestFreezeWhileItExecutes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	path := fmt.Sprintf("/criserver-test-freeze-%d", os.Getpid())
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), executesItself+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = Thaw(path)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	})
	if err := Enter(path, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := Freeze(ctx, path)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if frozen, err := Frozen(path); err != nil || !frozen {
			t.Errorf("it is not frozen, %v", err)
		}
		if err := Thaw(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}
