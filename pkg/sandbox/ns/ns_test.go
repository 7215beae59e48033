package ns

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
}

// inside runs fn on a thread that has joined the namespace at path.
func inside(t *testing.T, path string, fn func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		f, err := os.Open(path)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), 0)
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestMakeAndRemove(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { _ = Remove(dir) })
	hostBefore, _ := os.Hostname()
	err := Make(Config{Dir: dir, Kinds: []Kind{Net, IPC, UTS}, Hostname: "pod-a",
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []Kind{Net, IPC, UTS} {
		if !Pinned(dir, k) {
			t.Errorf("%s is not pinned", k)
		}
	}
	inside(t, Path(dir, UTS), func() {
		if got, _ := os.Hostname(); got != "pod-a" {
			t.Errorf("host name in the pod = %q", got)
		}
	})
	inside(t, Path(dir, IPC), func() {
		if got, _ := os.ReadFile("/proc/sys/kernel/shm_rmid_forced"); strings.TrimSpace(string(got)) != "1" {
			t.Errorf("shm_rmid_forced = %q", got)
		}
	})
	inside(t, Path(dir, Net), func() {
		if got, _ := os.ReadFile("/proc/thread-self/net/dev"); !strings.Contains(string(got), "lo:") || strings.Contains(string(got), "eth0:") {
			t.Errorf("the pod sees these interfaces: %s", got)
		}
	})
	if got, _ := os.Hostname(); got != hostBefore {
		t.Errorf("host name of the host became %q", got)
	}
	for range 2 { // idempotent
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory is left: %v", err)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), dir) {
		t.Error("a mount is left")
	}
}

func TestMakeFailsInTheMiddle(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	err := Make(Config{Dir: dir, Kinds: []Kind{Net}, Sysctls: map[string]string{"net.no.such": "1"}})
	if err == nil || !strings.Contains(err.Error(), "net.no.such=1") {
		t.Fatalf("err = %v", err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory is left: %v", err)
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":              "/proc/sys/net/ipv4/ip_forward",
		"net/ipv4/ip_forward":              "/proc/sys/net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.rp_filter": "/proc/sys/net/ipv4/conf/eth0.100/rp_filter",
		"net/ipv4/conf/eth0.100/rp_filter": "/proc/sys/net/ipv4/conf/eth0.100/rp_filter",
		"../../etc/passwd":                 "",
		"":                                 "",
	} {
		got, err := SysctlPath(name)
		if got != want || (want == "") != (err != nil) {
			t.Errorf("SysctlPath(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
}
