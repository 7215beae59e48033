package snapshot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const hostRoot = 1_000_000 // who root is in the tests' user namespace

// userNS is a user namespace that lives as long as the test.
func userNS(t *testing.T) IDMap {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostRoot, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return IDMap{UserNS: fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid), UID: hostRoot, GID: hostRoot}
}

// staged tells whether anything is there of the place for layers beside a target.
func staged(target string) bool {
	_, err := os.Lstat(filepath.Dir(stage(target)))
	return !errors.Is(err, os.ErrNotExist)
}

func ownerOf(t *testing.T, path string) [2]uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return [2]uint32{st.Uid, st.Gid}
}

func TestMountMapped(t *testing.T) {
	needRoot(t)
	ids, base := userNS(t), t.TempDir()
	if err := CanMap(base, ids); err != nil {
		t.Skipf("this file system cannot be mapped: %v", err)
	}
	if n := names(t, base); n != 0 {
		t.Errorf("CanMap left %d names", n)
	}
	for _, n := range []int{3, 450} { // more than mount(2) takes with an absolute path each
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			base := t.TempDir()
			m := stack(t, base, n)
			if err := os.Chown(filepath.Join(base, "layer-001", "1"), 5, 6); err != nil {
				t.Fatal(err)
			}
			dir := target(t)
			if err := MountMapped([]Mount{m}, dir, ids); err != nil {
				if n > 3 && errors.Is(err, unix.E2BIG) {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			if got := names(t, dir); got != n {
				t.Errorf("%d names, want %d", got, n)
			}
			if got := ownerOf(t, filepath.Join(dir, "1")); got != [2]uint32{hostRoot + 5, hostRoot + 6} {
				t.Errorf("a file of 5:6 is of %v", got)
			}
			// As the namespace's root, what is made has root's ID on disk, and a copy up keeps its owner.
			err := onThread("/", &ids, func() error {
				return errors.Join(os.WriteFile(filepath.Join(dir, "new"), nil, 0o600), os.Chmod(filepath.Join(dir, "1"), 0o600))
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := ownerOf(t, filepath.Join(base, "u", "new")); got != [2]uint32{0, 0} {
				t.Errorf("a new file of root is on disk of %v", got)
			}
			if got := ownerOf(t, filepath.Join(base, "u", "1")); got != [2]uint32{5, 6} {
				t.Errorf("the copy of a file of 5:6 is on disk of %v", got)
			}
			if err := Unmount(dir); err != nil {
				t.Fatal(err)
			}
			table, _ := os.ReadFile("/proc/self/mountinfo")
			if strings.Contains(string(table), dir) || staged(dir) {
				t.Errorf("something is left beside %s", dir)
			}
		})
	}
}

// What is no overlay is mapped itself.
func TestMountMappedBind(t *testing.T) {
	needRoot(t)
	ids, source, dir := userNS(t), t.TempDir(), target(t)
	if err := CanMap(source, ids); err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(filepath.Join(source, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MountMapped([]Mount{{Type: "bind", Source: source, Options: []string{"ro"}}}, dir, ids); err != nil {
		t.Fatal(err)
	}
	if got := ownerOf(t, filepath.Join(dir, "f")); got != [2]uint32{hostRoot, hostRoot} {
		t.Errorf("a file of root is of %v", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "g"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only mount: %v", err)
	}
	if n := mounted(t, dir); n != 1 {
		t.Errorf("%d mounts on the target, want 1", n)
	}
}

func TestMountMappedFailureLeavesNothing(t *testing.T) {
	needRoot(t)
	ids, base := userNS(t), t.TempDir()
	if err := CanMap(base, ids); err != nil {
		t.Skip(err)
	}
	dir := target(t)
	good, bad := stack(t, base, 2), Mount{Type: "tmpfs", Options: []string{"no_such_option"}}
	for _, mounts := range [][]Mount{{bad}, {good, bad}} {
		if err := MountMapped(mounts, dir, ids); err == nil {
			t.Fatal("no error")
		}
		if n := mounted(t, dir); n != 0 || names(t, dir) != 0 || staged(dir) {
			t.Errorf("%d mounts are left", n)
		}
	}
	// Of a process that was killed between two steps, Unmount finds the rest.
	if err := os.MkdirAll(stage(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := MountAll([]Mount{{Type: "tmpfs", Source: "tmpfs"}}, stage(dir)); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(dir); err != nil || staged(dir) {
		t.Errorf("Unmount: %v", err)
	}
}
