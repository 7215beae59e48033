package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/idmap"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "namespaces" {
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

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
	err := Make(t.Context(), Config{Dir: dir, Kinds: []Kind{Net, IPC, UTS}, Hostname: "pod-a",
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
	for name, value := range map[string]string{"net.no.such": "1", "net.ipv4.ip_forward": "many", "net.ipv4": "1"} {
		err := Make(t.Context(), Config{Dir: dir, Kinds: []Kind{Net}, Sysctls: map[string]string{name: value}})
		if !errors.Is(err, ErrSysctl) || !strings.Contains(err.Error(), name+"="+value) {
			t.Fatalf("err = %v", err)
		}
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory is left: %v", err)
	}
}

// owner is the user namespace that another namespace belongs to (ioctl_ns(2)).
func owner(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestMakeWithUsers(t *testing.T) {
	needRoot(t)
	// The program need not be in reach of who is root in the namespace.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ids := []idmap.Range{{Container: 0, Host: 1_000_000, Size: 65536}}
	c := Config{
		Dir: filepath.Join(t.TempDir(), "ns"), Kinds: []Kind{Net, IPC, UTS}, Hostname: "pod-a",
		Users: &idmap.Mappings{UIDs: ids, GIDs: ids}, Helper: self,
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "11"},
	}
	t.Cleanup(func() { _ = Remove(c.Dir) })
	if err := Make(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var user unix.Stat_t
	if err := unix.Stat(Path(c.Dir, User), &user); err != nil || !Pinned(c.Dir, User) {
		t.Fatalf("the user namespace is not pinned: %v", err)
	}
	for _, k := range c.Kinds {
		if got := owner(t, Path(c.Dir, k)); got != user.Ino {
			t.Errorf("%s belongs to user namespace %d, not to %d", k, got, user.Ino)
		}
	}
	inside(t, Path(c.Dir, UTS), func() {
		if got, _ := os.Hostname(); got != "pod-a" {
			t.Errorf("host name in the pod = %q", got)
		}
	})
	inside(t, Path(c.Dir, IPC), func() {
		for path, want := range map[string]string{"/proc/sys/kernel/shm_rmid_forced": "1", "/proc/sys/fs/mqueue/msg_max": "11"} {
			if got, err := os.ReadFile(path); strings.TrimSpace(string(got)) != want {
				t.Errorf("%s = %q, %v", path, got, err)
			}
		}
	})
	if err := Remove(c.Dir); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Config){
		"net.no.such=1": func(c *Config) { c.Sysctls = map[string]string{"net.no.such": "1"} },
		"no such file":  func(c *Config) { c.Helper = "/no/such" },
		"exit status 1": func(c *Config) { c.Helper = "/bin/false" },
	} {
		bad := c
		change(&bad)
		if err := Make(t.Context(), bad); err == nil || !strings.Contains(err.Error(), what) || errors.Is(err, ErrSysctl) != (bad.Sysctls["net.no.such"] != "") {
			t.Errorf("error %v, want one of %q", err, what)
		}
		if err := Remove(bad.Dir); err != nil {
			t.Error(err)
		}
	}
}

// The trial shows the host's /sys to a user namespace, and the host keeps its mounts.
func TestHostSys(t *testing.T) {
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Of the machine's own, and not of what others mount meanwhile.
	sys := func() (found []string) {
		t.Helper()
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if place := strings.Fields(line)[4]; place == "/sys" || strings.HasPrefix(place, os.TempDir()+"/"+t.Name()) {
				found = append(found, line)
			}
		}
		return found
	}
	before := sys()
	ids := []idmap.Range{{Container: 0, Host: 1_000_000, Size: 1}}
	c := Config{Dir: filepath.Join(t.TempDir(), "ns"), Users: &idmap.Mappings{UIDs: ids, GIDs: ids}, Helper: self, TryHostSys: true}
	if err := Make(t.Context(), c); err != nil {
		t.Error(err)
	}
	if err := Remove(c.Dir); err != nil {
		t.Error(err)
	}
	if after := sys(); len(before) == 0 || !slices.Equal(after, before) {
		t.Errorf("mounts before: %q, after: %q", before, after)
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

// ownPID starts a process in a PID namespace of its own.
func ownPID(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	return cmd
}

// end has no process of the PID any more when it returns.
func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func TestHold(t *testing.T) {
	needRoot(t)
	always := func() bool { return true }
	a, b := ownPID(t), ownPID(t)
	held, err := Hold(a.Process.Pid, PID, always)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := held.Check(a.Process.Pid); err != nil {
		t.Error(err)
	}
	for name, pid := range map[string]int{"the host's": os.Getpid(), "another one's": b.Process.Pid} {
		if err := held.Check(pid); !errors.Is(err, ErrOther) {
			t.Errorf("a process in %s namespace: %v", name, err)
		}
	}
	if _, err := Hold(a.Process.Pid, PID, func() bool { return false }); !errors.Is(err, ErrOther) {
		t.Errorf("another process has the PID: %v", err)
	}
	// It ends when its namespace is open and it was found to be the right one.
	ends := func() bool { end(b); return true }
	if _, err := Hold(b.Process.Pid, PID, ends); !errors.Is(err, ErrOther) {
		t.Errorf("the process ends meanwhile: %v", err)
	}
	end(a)
	if _, err := Hold(a.Process.Pid, PID, always); !errors.Is(err, ErrOther) {
		t.Errorf("the process has ended: %v", err)
	}
	// The held one is no other's, though it has no process.
	if err := held.Check(ownPID(t).Process.Pid); !errors.Is(err, ErrOther) {
		t.Errorf("a namespace that came later: %v", err)
	}
	var none *Held
	if err := none.Check(os.Getpid()); err != nil || none.Path() != "" {
		t.Errorf("none: %q, %v", none.Path(), err)
	}
	none.Close()
}
