package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// run runs a program and returns what it prints.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return strings.TrimSpace(string(out))
}

// mountRoot gives a node that is not started a root on a file system of so many MiB of its own.
func mountRoot(t *testing.T, n *node, mib int64) string {
	t.Helper()
	file, root := filepath.Join(n.dir, "disk"), filepath.Join(n.dir, "root")
	f, err := os.Create(file)
	if err == nil {
		err = f.Truncate(mib << 20)
		f.Close()
	}
	if err == nil {
		err = os.Mkdir(root, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", file)
	run(t, "mount", "-o", "loop", file, root)
	t.Cleanup(func() { run(t, "umount", root) })
	return root
}

// freeOf is what a file system has left, in bytes and inodes. What databases take is not counted: they grow and are kept.
func freeOf(t *testing.T, dir string) (bytes, inodes int64) {
	t.Helper()
	unix.Sync() // ext4 gives blocks back when the transaction is committed
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	bytes, inodes = int64(st.Bfree)*st.Bsize, int64(st.Ffree)
	databases, _ := filepath.Glob(filepath.Join(dir, "*.db*"))
	for _, file := range databases {
		var st unix.Stat_t
		if unix.Stat(file, &st) == nil {
			bytes, inodes = bytes+512*st.Blocks, inodes+1
		}
	}
	return bytes, inodes
}

// TestDiskFull pulls an image for which there is no room: nothing else suffers, the room that it took is given back, and with
// more room the pull succeeds.
func TestDiskFull(t *testing.T) {
	small, large := checkedImage(t, "small", 1, 64), checkedImage(t, "large", 3, 24<<10)
	n := newStoppedNode(t)
	root := mountRoot(t, n, 256)
	n.serve()
	filler := filepath.Join(root, "filler")
	data := make([]byte, 192<<20)
	if err := os.WriteFile(filler, data, 0o600); err != nil {
		t.Fatal(err)
	}
	n.pull(small)
	check := newChecker(n)
	lives := n.run(check.podID, check.pod, shell("lives", "while :; do sleep 1; done", func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = small
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		c.Command = []string{"/bin/busybox", "sleep", "1000"}
	}))
	files := n.stored()
	bytes, inodes := freeOf(t, root)
	for range 2 { // what is left of one pull must not be in the way of the next
		err := n.pullAs(large, nil)
		if err == nil || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("pull on a full disk: %v", err)
		}
		t.Logf("the error is: %v", err)
		n.awaitDeletion() // what the pull had is still being given back when it returns
		check.whole(small)
		if st := n.status(lives); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("a container that ran is %s", st.State)
		}
	}
	// Whole layers of the failed pull may stay until the next collection.
	n.collect()
	n.wantStored(files)
	n.wantFree(root, bytes, inodes)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := n.pullAs(large, nil); err != nil {
		t.Fatalf("pull with more room: %v", err)
	}
	check.whole(large)
}

// wantFree fails the test if less is free than before.
func (n *node) wantFree(dir string, bytes, inodes int64) {
	n.t.Helper()
	const directories = 64 << 10 // they never get smaller on ext4
	var b, i int64
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if b, i = freeOf(n.t, dir); b >= bytes-directories && i >= inodes {
			n.t.Logf("free: %d bytes, were %d; %d inodes, were %d", b, bytes, i, inodes)
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	n.t.Errorf("%d bytes and %d inodes are free, before it were %d and %d", b, i, bytes, inodes)
}
