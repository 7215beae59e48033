package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestLifecycle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	path := fmt.Sprintf("/criserver-test-cgroup-%d", os.Getpid())
	t.Cleanup(func() { _ = Remove(path) })
	for range 2 {
		if err := Create(path + "/a/b"); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := Children(path); err != nil || len(names) != 1 || names[0] != "a" {
		t.Fatalf("children = %v, %v", names, err)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if err := Enter(path+"/a/b", cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := Remove(path); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Fatalf("removing a populated cgroup: err = %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if Exists(path) {
		t.Error("the cgroup is left")
	}
}

func TestRefusesDangerousPaths(t *testing.T) {
	for _, path := range []string{"", "/", "a", "/a/../..", "//", "/a/"} {
		if err := Remove(path); err == nil {
			t.Errorf("Remove(%q) was not refused", path)
		}
		if err := Create(path); err == nil {
			t.Errorf("Create(%q) was not refused", path)
		}
	}
}
