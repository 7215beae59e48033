package fsmount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

func TestDetachedLeavesNoTrace(t *testing.T) {
	needRoot(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	mnt, err := Detached("tmpfs", []Param{{Key: "size", Value: "1m"}}, unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer mnt.Close()
	if err := unix.Mkdirat(int(mnt.Fd()), "dir", 0o755); err != nil {
		t.Errorf("detached mount cannot be used: %v", err)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Count(string(after), "\n") > strings.Count(string(before), "\n") {
		t.Errorf("mount table has grown (%v)", err)
	}
}

func TestAttach(t *testing.T) {
	needRoot(t)
	mnt, err := Detached("tmpfs", nil, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer mnt.Close()
	dir := t.TempDir()
	if err := Attach(mnt, filepath.Join(dir, "none")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("missing target: %v", err)
	}
	if err := Attach(mnt, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only mount: %v", err)
	}
}

func TestDetachedErrors(t *testing.T) {
	needRoot(t)
	for name, test := range map[string]struct {
		fstype string
		param  Param
		want   error
		text   string
	}{
		"type":   {"criserverfs", Param{Key: "ro"}, unix.ENODEV, "criserverfs"},
		"option": {"tmpfs", Param{Key: "no_such", Value: "1"}, unix.EINVAL, "Unknown parameter 'no_such'"}, // the kernel's words
		"long":   {"tmpfs", Param{Key: "source", Value: strings.Repeat("x", MaxValue+1)}, unix.ENAMETOOLONG, "256 bytes"},
	} {
		_, err := Detached(test.fstype, []Param{test.param}, 0)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v; want %v with %q", name, err, test.want, test.text)
		}
	}
}

func TestProbeOnceKeepsConclusiveAnswers(t *testing.T) {
	calls, fail := 0, true
	probe := probeOnce(func() (bool, error) {
		calls++
		if fail {
			return false, errors.New("could not tell")
		}
		return true, nil
	})
	if _, err := probe(); err == nil {
		t.Error("inconclusive probe gives no error")
	}
	fail = false
	for range 2 {
		if ok, err := probe(); !ok || err != nil {
			t.Errorf("probe says %v, %v", ok, err)
		}
	}
	if calls != 2 {
		t.Errorf("probed %d times, want 2", calls)
	}
}
