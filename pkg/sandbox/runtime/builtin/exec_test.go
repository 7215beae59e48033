package builtin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/runtime/builtin/enter"
)

// The test binary is executed again as the init process of its containers, as crimonitor is.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}

const busybox = "/bin/busybox"

func TestMain(m *testing.M) {
	// The runtime's processes are handed up to this one.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// started is a container that sleeps.
type started struct {
	*Runtime
	t  *testing.T
	id string
}

func start(t *testing.T, change ...func(rootfs string, s *specs.Spec)) *started {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	id, dir := fmt.Sprintf("c%d", time.Now().UnixNano()), t.TempDir()
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "etc", "tmp", "sys", "home"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", busybox, filepath.Join(rootfs, "bin/busybox")).CombinedOutput(); err != nil {
		t.Fatalf("copy busybox (package busybox-static): %v: %s", err, out)
	}
	for _, applet := range []string{"sh", "sleep", "cat", "env", "ls", "id", "grep", "readlink", "pwd", "true", "unshare", "sort", "stat"} {
		if err := os.Link(filepath.Join(rootfs, "bin/busybox"), filepath.Join(rootfs, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(rootfs, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
	spec := &specs.Spec{
		Version:  specs.Version,
		Hostname: "parity",
		Root:     &specs.Root{Path: rootfs},
		Process:  process("sleep", "1000"),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: fmt.Sprintf("/criserver-test-builtin-%d/%s", os.Getpid(), id),
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace}},
			Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow,
				Syscalls: []specs.LinuxSyscall{{Names: []string{"unshare", "keyctl"}, Action: specs.ActErrno}}},
		},
	}
	for _, c := range change {
		c(rootfs, spec)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.json"), string(data))
	s := &started{Runtime: New(filepath.Join(dir, "state")), t: t, id: id}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pid, err := s.Create(t.Context(), id, dir, runtime.Stdio{Stdin: null, Stdout: null, Stderr: null})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
		if err := s.Delete(context.Background(), id, dir); err != nil {
			t.Error(err)
		}
		for _, root := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
			left, _ := filepath.Glob(filepath.Join(root, fmt.Sprintf("criserver-test-builtin-%d", os.Getpid())))
			for _, dir := range left {
				_ = unix.Rmdir(dir)
			}
		}
	})
	if err := s.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func process(args ...string) *specs.Process {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_NO_SUCH"}
	score := 500
	return &specs.Process{
		Args: args, Cwd: "/", Env: []string{"PATH=/bin", "A=1", "A=2"},
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}},
		OOMScoreAdj:  &score,
	}
}

type starter func(ctx context.Context, id string, p *specs.Process, io runtime.Stdio) (int, error)

// run returns the output of a command, and how it ended.
func (s *started) run(start starter, p *specs.Process) (string, syscall.WaitStatus, error) {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		s.t.Fatal(err)
	}
	defer null.Close()
	pid, err := start(s.t.Context(), s.id, p, runtime.Stdio{Stdin: null, Stdout: w, Stderr: w})
	_ = w.Close()
	if err != nil {
		return "", 0, err
	}
	out, _ := io.ReadAll(r)
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		s.t.Error(err)
	}
	return string(out), status, nil
}

// slowly is libcontainer's way.
func (s *started) slowly(_ context.Context, id string, p *specs.Process, io runtime.Stdio) (int, error) {
	return s.execSlowly(id, p, io)
}

// quickly fails where Exec would turn to libcontainer.
func (s *started) quickly(ctx context.Context, id string, p *specs.Process, io runtime.Stdio) (int, error) {
	c, err := s.rooms.of(ctx, id)
	if err != nil {
		return 0, err
	}
	if !plain(p) || !enter.Supported() || c.special {
		s.t.Error("package enter does not take it")
	}
	return s.enter(ctx, c, p, io)
}

// look shows all of a process that another way of starting it could change.
const look = `cat /proc/self/status | grep -v -E '^(Pid|Tgid|NSpid|NStgid|NSpgid|NSsid|Vm|Rss|.*ctxt|SigQ|Cpus|Mems|x86|Threads|Name|PPid|Hugetlb)'
cat /proc/self/limits; cat /proc/self/cgroup; cat /proc/self/oom_score_adj; env | sort; pwd; id; umask; grep -o '_ses.c[0-9]*' /proc/keys | sort -u | grep -c $HOSTKEY
for n in cgroup ipc mnt net pid pid_for_children user uts; do readlink /proc/self/ns/$n; done
ls /proc/$$/fd; stat -L -c %u /proc/$$/fd/1; cat /proc/self/personality; cat /proc/self/attr/current 2>/dev/null
cat /proc/sys/kernel/hostname; grep -c . /proc/self/mounts
grep PPid /proc/$$/status
unshare -i true; echo $?`

// appArmorProfile loads a profile, and returns its name, or none on a kernel without.
func appArmorProfile(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("/sys/kernel/security/apparmor/profiles"); err != nil {
		return ""
	}
	const name = "criserver-test-builtin"
	parser := func(option string) {
		cmd := exec.Command("apparmor_parser", option)
		cmd.Stdin = strings.NewReader("profile " + name + " flags=(attach_disconnected,mediate_deleted) {\n capability, file, signal, ptrace,\n}\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser: %v: %s", err, out)
		}
	}
	parser("-Kr")
	t.Cleanup(func() { parser("-R") })
	return name
}

// TestExecParity: package enter makes the same processes as libcontainer does.
func TestExecParity(t *testing.T) {
	s, profile := start(t), appArmorProfile(t)
	umask := uint32(0o27)
	other := start(t, func(rootfs string, spec *specs.Spec) {
		spec.Process.User.Umask = &umask
		spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		spec.Linux.Seccomp.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}
		if err := os.Chmod(filepath.Join(rootfs, "home"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(rootfs, "home"), 1000, 1000); err != nil {
			t.Fatal(err)
		}
	})
	bare := start(t, func(_ string, spec *specs.Spec) {
		spec.Process.Capabilities, spec.Process.Rlimits, spec.Process.OOMScoreAdj, spec.Linux.Seccomp = nil, nil, nil, nil
		spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}
		spec.Hostname = ""
	})
	user := specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 7}}
	for name, tt := range map[string]struct {
		in     *started
		change func(p *specs.Process)
	}{
		"root":         {s, func(*specs.Process) {}},
		"no_new_privs": {s, func(p *specs.Process) { p.NoNewPrivileges = true }},
		"user":         {s, func(p *specs.Process) { p.User = user }},
		"ambient": {s, func(p *specs.Process) {
			p.User, p.NoNewPrivileges = user, true
			p.Capabilities.Inheritable, p.Capabilities.Ambient = []string{"CAP_NET_RAW"}, []string{"CAP_NET_RAW", "CAP_SYS_TIME"}
		}},
		"no capabilities":   {s, func(p *specs.Process) { p.Capabilities = &specs.LinuxCapabilities{} }},
		"home":              {s, func(p *specs.Process) { p.Env = append(p.Env, "HOME=/tmp") }},
		"empty home":        {s, func(p *specs.Process) { p.Env = append(p.Env, "HOME=") }},
		"unknown user":      {s, func(p *specs.Process) { p.User = specs.User{UID: 4711} }},
		"the container's":   {s, func(p *specs.Process) { p.Capabilities, p.Rlimits, p.OOMScoreAdj = nil, nil, nil }},
		"other container":   {other, func(p *specs.Process) { p.User = user }},
		"user's directory":  {other, func(p *specs.Process) { p.User, p.Cwd = user, "/home" }},
		"host's namespaces": {bare, func(p *specs.Process) { p.Capabilities, p.OOMScoreAdj = nil, nil }},
		"AppArmor":          {s, func(p *specs.Process) { p.ApparmorProfile = profile }},
		"AppArmor, user":    {s, func(p *specs.Process) { p.ApparmorProfile, p.NoNewPrivileges, p.User = profile, true, user }},
		"large environment": {s, func(p *specs.Process) {
			p.Env = append(p.Env, "B="+strings.Repeat("x", 100<<10), "C="+strings.Repeat("y", 100<<10))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var outs []string
			for _, way := range []starter{tt.in.slowly, tt.in.quickly} {
				p := process("sh", "-c", "HOSTKEY=_ses."+tt.in.id+"\n"+look)
				tt.change(p)
				out, status, err := tt.in.run(way, p)
				if p.ApparmorProfile != "" && !strings.Contains(out, p.ApparmorProfile+" (enforce)") {
					t.Errorf("its profile is not %s: %s", p.ApparmorProfile, out)
				}
				if err != nil || status != 0 {
					t.Fatalf("%v, %v: %s", err, status, out)
				}
				outs = append(outs, out)
			}
			if outs[0] != outs[1] {
				t.Errorf("libcontainer:\n%s\npackage enter:\n%s", outs[0], outs[1])
			}
		})
	}
}

// TestExecErrors: what a user reads is what libcontainer has always said of it, or close to it.
func TestExecErrors(t *testing.T) {
	s := start(t, func(rootfs string, _ *specs.Spec) {
		write(t, filepath.Join(rootfs, "bin/plain"), "no program")
		write(t, filepath.Join(rootfs, "bin/script"), "#!/no/such\n")
		if err := os.Chmod(filepath.Join(rootfs, "bin/script"), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	for name, tt := range map[string]struct {
		change func(p *specs.Process)
		want   string
	}{
		"not in PATH":       {func(p *specs.Process) { p.Args = []string{"nosuch"} }, `exec: "nosuch": executable file not found in $PATH`},
		"no PATH":           {func(p *specs.Process) { p.Env = nil }, `exec: "sh": executable file not found in $PATH`},
		"relative in PATH":  {func(p *specs.Process) { p.Cwd, p.Env = "/bin", []string{"PATH=:."} }, `exec: "sh": executable file not found in $PATH`},
		"no such file":      {func(p *specs.Process) { p.Args = []string{"/no/such"} }, `exec: "/no/such": no such file or directory`},
		"a directory":       {func(p *specs.Process) { p.Args = []string{"/bin"} }, `exec: "/bin": is a directory`},
		"not executable":    {func(p *specs.Process) { p.Args = []string{"/bin/plain"} }, `exec: "/bin/plain": permission denied`},
		"no interpreter":    {func(p *specs.Process) { p.Args = []string{"script"} }, `exec: "script": no such file or directory`},
		"working directory": {func(p *specs.Process) { p.Cwd = "/nowhere" }, `exec: "sh": cannot change to its working directory: no such file or directory`},
		"limits": {func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}} },
			`exec: "sh": cannot set its limits: invalid argument`},
	} {
		t.Run(name, func(t *testing.T) {
			p := process("sh", "-c", "true")
			tt.change(p)
			out, _, err := s.run(s.quickly, p)
			if err == nil || err.Error() != tt.want {
				t.Errorf("%q, %v\nwant %s", out, err, tt.want)
			}
		})
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid > 0 {
		t.Errorf("process %d is left to reap, %v", pid, err)
	}
}

// TestExecFrozen: a container that does not go on holds up neither the caller beyond its time nor other commands.
func TestExecFrozen(t *testing.T) {
	s, other := start(t), start(t)
	m, err := s.cgroup(s.id, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Freeze(cgroups.Frozen); err != nil {
		t.Fatal(err)
	}
	thawed := false
	thaw := func() {
		if !thawed {
			thawed = true
			if err := m.Freeze(cgroups.Thawed); err != nil {
				t.Error(err)
			}
		}
	}
	defer thaw()
	p := process("true")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Exec(ctx, s.id, p, runtime.Stdio{Stdin: null, Stdout: null, Stderr: null}); ctx.Err() == nil || err == nil {
		t.Errorf("in a frozen container: %v", err)
	}
	if _, status, err := other.run(other.exec, p); status != 0 || err != nil {
		t.Errorf("beside a frozen container: %v, %v", status, err)
	}
	thaw()
	if _, status, err := s.run(s.exec, p); status != 0 || err != nil {
		t.Errorf("after it: %v, %v", status, err)
	}
}

// TestExecInGoneContainer: another process that has the PID of its init by now is not taken for it.
func TestExecInGoneContainer(t *testing.T) {
	s := start(t)
	c, err := s.rooms.of(t.Context(), s.id)
	if err != nil {
		t.Fatal(err)
	}
	c.started++
	if _, _, err := s.run(s.exec, process("true")); err == nil || !strings.Contains(err.Error(), runtime.ErrNotFound.Error()) {
		t.Errorf("%v", err)
	}
}
