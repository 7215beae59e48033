package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attacksImage has programs that try what containers must not do, see test/images/guest/tools.
const attacksImage = "docker.io/criserver/attacks"

func attacking(c *runtimeapi.ContainerConfig) { c.Image.Image = attacksImage }

func sharedPIDs(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}

func nodePIDs(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
}

func podPIDs(c *runtimeapi.ContainerConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}

// podInitPID is the process 1 of a pod whose containers share a PID namespace.
func (n *node) podInitPID(podID string) string {
	n.t.Helper()
	found, err := filepath.Glob(filepath.Join(n.dir, "state", "*", podID, "init", "pid"))
	if err != nil || len(found) != 1 {
		n.t.Fatalf("no pid of the init of %s: %v, %v", podID, found, err)
	}
	pid, err := os.ReadFile(found[0])
	if err != nil {
		n.t.Fatal(err)
	}
	return string(pid)
}

// TestPodInitIsConfined looks at process 1 of pods whose containers share a PID namespace, and has a container with its user and no
// filter of system calls try to become its tracer: it would be out of its own confinement.
func TestPodInitIsConfined(t *testing.T) {
	n := newNode(t)
	few := func(c *runtimeapi.PodSandboxConfig) { // then process 1 is root there, as there is no other user
		usersPod(c)
		u := c.Linux.SecurityContext.NamespaceOptions.UsernsOptions
		u.Uids[0].Length, u.Gids[0].Length = 1000, 1000
	}
	for name, row := range map[string]struct {
		pod  func(*runtimeapi.PodSandboxConfig)
		user int64
	}{
		"host's users": {func(*runtimeapi.PodSandboxConfig) {}, 65535},
		"privileged":   {privilegedPod, 65535},
		"own users":    {usersPod, 65535},
		"few users":    {few, 0},
	} {
		n.sub(name, func(t *testing.T) {
			pod := n.podConfig(row.pod, sharedPIDs)
			if pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions != nil {
				usersHandlers(t, n)
			}
			podID := n.runPod(pod)
			var status []byte
			eventually(t, "process 1 is executed", func() bool {
				status, _ = os.ReadFile(filepath.Join("/proc", n.podInitPID(podID), "status"))
				return strings.HasPrefix(string(status), "Name:\tpod-init\n")
			})
			for _, line := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000"} {
				if !strings.Contains(string(status), line+"\n") {
					t.Errorf("process 1 has not %q:\n%s", line, status)
				}
			}
			id := n.run(podID, pod, shell("attacks", "sleep 1000", attacking, podPIDs, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.NamespaceOptions.UsernsOptions = pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions
				s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: row.user}, &runtimeapi.Int64Value{Value: row.user}
			})))
			// Empty where the kernel has no such module.
			label, _ := os.ReadFile(filepath.Join("/proc", n.podInitPID(podID), "attr/current"))
			if own, _ := n.exec(id, "cat /proc/self/attr/current 2>/dev/null"); own != strings.TrimSpace(string(label)) {
				t.Errorf("process 1 has the AppArmor profile or label %q, and a container of the pod %q", label, own)
			}
			for script, want := range map[string]string{
				"cat /proc/1/comm; attach 1": "pod-init\nattach: operation not permitted",
				"readlink /proc/1/exe || head -c 1 /proc/1/mem || head -c 1 /proc/1/environ || echo refused": "refused",
				"sleep 10 & attach $!; kill $!": "attached", // of its own it may
			} {
				if out, _ := n.exec(id, "exec 2>/dev/null; "+script); out != want {
					t.Errorf("%s: %q, want %q", script, out, want)
				}
			}
		})
	}
}

// TestLinksInImages mounts a volume on paths whose directories are links in the image: to where they lead in the container.
func TestLinksInImages(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		volume := t.TempDir()
		name := filepath.Base(n.dir) + "-" + handler
		n.writeHost(filepath.Join(volume, "file"), "from the volume\n")
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		for _, link := range []string{"/data", "/up"} {
			target := "crie2e" + link[1:] + name
			id := n.run(podID, pod, shell("c"+link[1:], "sleep 1000", attacking, func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: link + "/" + target}}
			}))
			if out, _ := n.exec(id, "cat /etc/"+target+"/file"); out != "from the volume" {
				t.Errorf("%s: the container sees %q", link, out)
			}
			if _, err := os.Lstat("/etc/" + target); err == nil {
				t.Errorf("%s: the mount point was made on the host", link)
				_ = os.Remove("/etc/" + target)
			}
		}
	})
}

// descriptor is one in a list that ls has printed: its name after the time.
var descriptor = regexp.MustCompile(`(?m)^l\S+ .*\d\d:\d\d (\d+)( -> .*)?$`)

// TestInheritedDescriptors lists what the workload and a command in the container have open: 3 is the list itself.
func TestInheritedDescriptors(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		list := []string{"ls", "-l", "/proc/self/fd"}
		pod := n.podConfig(privilegedPod)
		podID := n.runPodOn(handler, pod)
		check := func(who, listed string) {
			t.Helper()
			var names []string
			for _, found := range descriptor.FindAllStringSubmatch(listed, -1) {
				names = append(names, found[1])
			}
			if fmt.Sprint(names) != "[0 1 2 3]" {
				t.Errorf("%s has open:\n%s", who, listed)
			}
		}
		for name, change := range map[string]containerChange{
			"plain":      func(*runtimeapi.ContainerConfig) {},
			"privileged": privileged(),
			"stdin":      func(c *runtimeapi.ContainerConfig) { c.Stdin = true },
			"terminal":   func(c *runtimeapi.ContainerConfig) { c.Tty = true },
		} {
			listed, _ := n.output(podID, pod, shell(name, "", change, func(c *runtimeapi.ContainerConfig) { c.Command = list }))
			check(name+" workload", listed)
			id := n.run(podID, pod, shell(name+"-runs", "sleep 1000", change))
			r, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: list, Timeout: 30})
			if err != nil {
				t.Fatal(err)
			}
			check("command in a "+name+" container", string(r.Stdout))
		}
	})
}

// kubeletsPaths are the default lists that the kubelet sends.
func kubeletsPaths(s *runtimeapi.LinuxContainerSecurityContext) {
	s.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	s.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// cgroupMounts are where a container has cgroups; of version 1 they are in a tmpfs of its own.
const cgroupMounts = "$(grep -E ' cgroup2? ' /proc/self/mounts | cut -d' ' -f2)"

// TestKernelFilesAreReadOnly has root in a container write to files of the kernel.
func TestKernelFilesAreReadOnly(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig(sharedPIDs)
		podID := n.runPodOn(handler, pod)
		for name, change := range map[string]containerChange{
			"as of the kubelet": func(c *runtimeapi.ContainerConfig) { podPIDs(c); kubeletsPaths(c.Linux.SecurityContext) },
			"says nothing":      func(c *runtimeapi.ContainerConfig) { c.Linux = nil },
		} {
			id := n.run(podID, pod, shell(strings.ReplaceAll(name, " ", "-"), "sleep 1000", change))
			if out, _ := n.exec(id, "echo "+cgroupMounts); !strings.Contains(out, "/sys/fs/cgroup") {
				t.Errorf("%s: there are no cgroups: %q", name, out)
			}
			for _, script := range []string{
				"for d in " + cgroupMounts + "; do mkdir $d/made && exit; done; false",
				"for f in $(find " + cgroupMounts + " -name cgroup.procs); do echo 1 >$f && exit; done; false",
				"echo 100 >/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", "echo 1 >/sys/kernel/profiling",
				"echo 0 >/proc/sys/kernel/panic", "echo 1 >/proc/sys/vm/drop_caches", "echo x >/proc/sys/kernel/core_pattern",
				"echo h >/proc/sysrq-trigger",
				"mount -o remount,rw /sys", "mount -o remount,rw /proc/sys", "umount /proc/sys",
			} {
				if out, code := n.exec(id, script); code == 0 {
					t.Errorf("%s: %s worked: %s", name, script, out)
				}
			}
		}
	})
}

// TestDefaultSeccomp compares what system calls give with the default filter and without one.
func TestDefaultSeccomp(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		for name, row := range map[string]struct {
			profile runtimeapi.SecurityProfile_ProfileType
			want    string
		}{
			"filtered":   {runtimeapi.SecurityProfile_RuntimeDefault, "add_key: EPERM\nbpf: EPERM\nkeyctl: EPERM\nmount: EPERM\nunshare: EPERM"},
			"unconfined": {runtimeapi.SecurityProfile_Unconfined, "add_key: EFAULT\nbpf: E2BIG\nkeyctl: ENOTSUP\nmount: EFAULT\nunshare: EINVAL"},
		} {
			id := n.run(podID, pod, shell(name, "syscalls; sleep 1000", attacking, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: row.profile}
			})))
			eventually(t, "the workload has made its calls", func() bool {
				return len(logLines(t, n.status(id).LogPath)) >= strings.Count(row.want, "\n")+1
			})
			if got := strings.Join(logLines(t, n.status(id).LogPath), "\n"); got != row.want {
				t.Errorf("%s workload:\n%s\nwant\n%s", name, got, row.want)
			}
			if got, _ := n.exec(id, "syscalls"); got != row.want {
				t.Errorf("command in a %s container:\n%s\nwant\n%s", name, got, row.want)
			}
		}
	})
}

// TestSetuid has a user execute a program that is root's and setuid: it becomes root, unless new privileges are not to be had, in the
// container's process and in its commands.
func TestSetuid(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		for noNewPrivs, want := range map[bool]string{false: "Effective uid: 0", true: "Effective uid: 1000"} {
			id := n.run(podID, pod, shell(fmt.Sprint(noNewPrivs), "/nnp; exec sleep 1000", func(c *runtimeapi.ContainerConfig) {
				c.Image.Image = "registry.k8s.io/e2e-test-images/nonewprivs:1.3"
				c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.NoNewPrivs = &runtimeapi.Int64Value{Value: 1000}, noNewPrivs
			}))
			eventually(t, "the program has run", func() bool { return len(logLines(t, n.status(id).LogPath)) > 0 })
			command, _ := n.exec(id, "/nnp")
			if got := logLines(t, n.status(id).LogPath)[0]; got != want || command != want {
				t.Errorf("no_new_privs %t: the container's process tells %q, a command %q, want %q", noNewPrivs, got, command, want)
			}
		}
	})
}

// TestRuntimesAreNotOverwritten has root of a privileged container, who may trace all processes of the pod, write to the programs of
// those that runtimes execute there: the init of a container that waits for its start, those of commands, and the pod's.
func TestRuntimesAreNotOverwritten(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	files := map[string]string{"builtin": binary("crimonitor"), "daemon": binary("criserver")}
	for name, path := range programs {
		files[name], _ = filepath.EvalSymlinks(path)
	}
	sums := func() map[string][32]byte {
		out := map[string][32]byte{}
		for name, path := range files {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = sha256.Sum256(data)
		}
		return out
	}
	before := sums()
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig(privilegedPod, sharedPIDs)
		podID := n.runPodOn(handler, pod)
		attacker := n.run(podID, pod, shell("attacker", "sleep 1000", attacking, podPIDs, privileged()))
		waits, err := n.create(podID, pod, shell("waits", "true", podPIDs))
		if err != nil {
			t.Fatal(err)
		}
		var commands sync.WaitGroup
		stop := make(chan struct{})
		commands.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					if i == 3 { // the program of its init is met by now
						_, _ = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: waits})
					}
					_, _ = n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: attacker, Cmd: []string{"true"}, Timeout: 30})
				}
			}
		})
		// And to one of its own, which it can.
		out, _ := n.exec(attacker, "cp /bin/busybox /tmp; /tmp/busybox sleep 1 & overwrite 5")
		close(stop)
		commands.Wait()
		t.Log(out)
		// Its own may be met twice: in the middle of its execution it is still called "sh".
		if own := strings.Count(out, " /tmp/busybox: written"); own == 0 || strings.Count(out, "written") != own {
			t.Error("it can")
		}
		init := "runc:[2:INIT] /" // libcontainer's name for it, crimonitor's too
		if handler == "crun" {
			init = "crun /"
		}
		if !strings.Contains(out, "pod-init /pod-init: ") || !strings.Contains(out, init) {
			t.Error("there are no such programs")
		}

		// A program of the image whose interpreter is the runtime's own.
		self := func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/self"} }
		id, err := n.create(podID, pod, shell("self", "", attacking, podPIDs, privileged(self)))
		if err == nil {
			_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
		}
		if err == nil && n.awaitExit(id).ExitCode == 0 {
			t.Errorf("the runtime as a workload: %v", n.status(id))
		}
		r, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: attacker, Cmd: []string{"/self"}, Timeout: 30})
		if err == nil && r.ExitCode == 0 {
			t.Errorf("the runtime as a command: %q %q", r.Stdout, r.Stderr)
		}
	})
	for name, sum := range sums() {
		if sum != before[name] {
			t.Errorf("%s is another program now: %s", name, files[name])
		}
	}
}

// TestSwappedSubPath mounts a directory of a volume as the kubelet does with a subPath, while somebody who may write to the volume puts a
// link to the host's root in its place again and again.
func TestSwappedSubPath(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	volume, staged := filepath.Join(n.dir, "volume"), filepath.Join(n.dir, "subpath")
	inner := filepath.Join(volume, "inner")
	for _, dir := range []string{inner, staged} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.writeHost(filepath.Join(inner, "own"), "")
	fd, err := unix.Open(inner, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), staged, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(staged, unix.MNT_DETACH) })
	stop := swap(t, inner)
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		for i := range 15 {
			out, _ := n.output(podID, pod, shell(fmt.Sprintf("c%d", i), "ls -A /v", mounting(&runtimeapi.Mount{HostPath: staged})))
			if out != "own" {
				t.Fatalf("container %d sees:\n%s", i, out)
			}
		}
	})
	if swaps := stop(); swaps < 1000 {
		t.Errorf("the directory was swapped %d times only", swaps)
	}
}

// swap puts a link to / in the place of a directory, and the directory back, until stop, which tells how often.
func swap(t *testing.T, dir string) (stop func() int) {
	done, count := make(chan struct{}), make(chan int)
	aside := dir + ".aside"
	go func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				count <- n
				return
			default:
			}
			if os.Rename(dir, aside) != nil || os.Symlink("/", dir) != nil || os.Remove(dir) != nil || os.Rename(aside, dir) != nil {
				t.Errorf("swap %d failed", n)
				<-done
				count <- n
				return
			}
		}
	}()
	return func() int {
		close(done)
		return <-count
	}
}

// writeHost writes a file of the host.
func (n *node) writeHost(path, text string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}
