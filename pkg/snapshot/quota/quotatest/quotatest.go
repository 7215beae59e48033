// Package quotatest gives tests a file system with project quotas, on a loop device.
package quotatest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"criserver/pkg/snapshot/quota"
)

// Kind is a way to make and mount a file system.
type Kind struct {
	Name    string
	mkfs    []string
	options string
	plain   []string // mkfs without quotas, to tell what it is that a kernel lacks
}

// Kinds are the file systems that have project quotas.
var Kinds = []Kind{Ext4, XFS}

var (
	// Ext4 gives EDQUOT beyond the limit.
	Ext4 = Kind{"ext4", []string{"mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"}, "prjquota", []string{"mkfs.ext4", "-q"}}
	// XFS gives ENOSPC.
	XFS = Kind{"xfs", []string{"mkfs.xfs", "-q"}, "pquota", []string{"mkfs.xfs", "-q"}}
)

// Unlimited is the kind with counts but without limits. Only xfs has such a mount option; ext4 does this if it has the
// features but is mounted without prjquota.
func (k Kind) Unlimited() Kind {
	k.options = map[string]string{"ext4": "rw", "xfs": "pqnoenforce"}[k.Name]
	return k
}

// Off is the kind without any quota.
func (k Kind) Off() Kind {
	k.mkfs, k.options = k.plain, "rw"
	return k
}

// Mount makes a file system of 512 MiB and mounts it until the test's end. It skips the test if the kernel has no such
// file system or no project quotas on it, which it finds out by trying.
func Mount(t testing.TB, k Kind) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	_ = exec.Command("modprobe", "-aq", "loop", k.Name, "quota_v2").Run() // built in, or else the mount tells
	dir, err := mount(t, k)
	if err == "" {
		return dir
	}
	dir, plainErr := mount(t, k.Off())
	if plainErr != "" {
		if known, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(known), "\t"+k.Name+"\n") {
			t.Skipf("this kernel has no %s: %s", k.Name, plainErr)
		}
		t.Fatalf("mount %s: %s", k.Name, plainErr)
	}
	fs, openErr := quota.Open(dir)
	if openErr != nil {
		t.Fatal(openErr)
	}
	state := fs.State()
	if closeErr := fs.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	if state.Counts != quota.No {
		t.Fatalf("mount %s with %s: %s, yet quotas are %+v", k.Name, k.options, err, state)
	}
	t.Skipf("this kernel mounts %s, but not with %s: %s (%v)", k.Name, k.options, err, state.Reason)
	return ""
}

// mount returns what the programs say if they fail.
func mount(t testing.TB, k Kind) (dir, said string) {
	t.Helper()
	work := t.TempDir()
	image, dir := filepath.Join(work, "image"), filepath.Join(work, "mnt")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 512<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		append(append([]string{}, k.mkfs...), image),
		{"mount", "-t", k.Name, "-o", "loop," + k.options, image, dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return "", strings.TrimSpace(strings.Join(command, " ") + ": " + err.Error() + ": " + string(out))
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-d", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	return dir, ""
}
