package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type containerChange = func(*runtimeapi.ContainerConfig)

func security(fn func(*runtimeapi.LinuxContainerSecurityContext)) containerChange {
	return func(c *runtimeapi.ContainerConfig) { fn(c.Linux.SecurityContext) }
}

// TestFields has a row for each field that is honoured: set it, look at it from inside.
func TestFields(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	volume := filepath.Join(n.dir, "volume")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(volume, "f"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.checkFields(t, programs, map[string]fieldRow{
		"args":        {"echo $0 $1", func(c *runtimeapi.ContainerConfig) { c.Args = []string{"a", "b"} }, "a b"},
		"working dir": {"pwd", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/new/dir" }, "/new/dir"},
		// Kubernetes admits it; it means nothing without stdin.
		"stdin once alone": {"cat; echo end", func(c *runtimeapi.ContainerConfig) { c.StdinOnce = true }, "end"},
		"env": {"echo $A-$PATH", func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("x y")}, {Key: "PATH", Value: []byte("/bin:/x")}}
		}, "x y-/bin:/x"},
		"mount": {"cat /v/f; touch /v/g && echo ok", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: volume}}
		}, "from the host\nok"},
		"read-only mount": {"touch /v/g 2>/dev/null || echo refused", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: volume, Readonly: true}}
		}, "refused"},
		"propagation": {"grep ' /v ' /proc/self/mountinfo | grep -o 'shared:\\|master:' | head -n 1", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: volume}}
		}, ""},
		"user": {"id -u; id -g", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1234} }), "1234\n0"},
		"user group": {"id -u; id -g; id -G", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1234}, &runtimeapi.Int64Value{Value: 55}
			s.SupplementalGroups = []int64{66}
		}), "1234\n55\n55 66"},
		"user name": {"id -u", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "root" }), "0"},
		"cpu and memory": {readLimits, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}
		}, "67108864 20000"},
		"default capabilities": {"grep CapEff /proc/self/status | cut -f2", nil, "00000000a80425fb"},
		"dropped capabilities": {"grep CapEff /proc/self/status | cut -f2", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}}
		}), "0000000000001000"},
		"no new privileges": {"grep NoNewPrivs /proc/self/status | cut -f2", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = true }), "1"},
		"read-only root":    {"touch /x 2>/dev/null || echo refused", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }), "refused"},
		"masked path": {"cat /proc/timer_list | wc -c; ls /proc/acpi 2>/dev/null | wc -l", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.MaskedPaths = []string{"/proc/timer_list", "/proc/acpi"}
		}), "0\n0"},
		"no masked path":     {"grep -c -E ' /proc/(timer_list|acpi|kcore) ' /proc/self/mounts", nil, "0"},
		"own masked path":    {"cat /etc/passwd | wc -c", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"/etc/passwd"} }), "0"},
		"read-only path":     {"(echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo refused", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/proc/sys"} }), "refused"},
		"own read-only path": {"touch /etc/passwd 2>/dev/null || echo refused", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/etc/passwd"} }), "refused"},
		"no seccomp":         {"grep Seccomp: /proc/self/status | cut -f2", nil, "0"},
		"seccomp": {"grep Seccomp: /proc/self/status | cut -f2; unshare -U true 2>/dev/null || echo refused", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		}), "2\nrefused"},
		"privileged": {"test -w /proc/sys/kernel/panic && ls /dev/kmsg", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }), "/dev/kmsg"},
		"own pids":   {"echo $$", nil, "1"},
		// The C library has real-time signals for itself.
		"signals": {"echo $((0x$(grep SigIgn /proc/self/status | cut -f2) & 0x7fffffff))", nil, "0"},
		"host pids": {"test $$ -gt 1 && echo yes", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		}), "yes"},
		"sysctls":  {"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", nil, "123\n1"},
		"shm":      {"df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2", nil, "65536"},
		"standard": {"ls -l /dev/null /dev/zero /dev/tty /dev/urandom | wc -l; readlink /dev/fd", nil, "4\n/proc/self/fd"},
	}, privilegedPod, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "123", "kernel.shm_rmid_forced": "1"}
	})
}

// TestNodesNamespaces runs containers in a pod that has the node's network and IPC: those that ask for it, and those that say nothing.
func TestNodesNamespaces(t *testing.T) {
	n := newNode(t)
	node := func(o *runtimeapi.NamespaceOption) {
		o.Network, o.Ipc = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
	}
	var want []string
	for _, kind := range []string{"net", "ipc"} {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, link)
	}
	own := fieldRow{script: "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc", want: strings.Join(want, "\n")}
	asks := own
	asks.change = security(func(s *runtimeapi.LinuxContainerSecurityContext) { node(s.NamespaceOptions) })
	n.checkFields(t, nil, map[string]fieldRow{"asks": asks, "says nothing": own}, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		node(c.Linux.SecurityContext.NamespaceOptions)
	})
}

// readLimits prints the memory limit and the CPU quota, of cgroup v1 or v2.
const readLimits = `if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	echo $(cat /sys/fs/cgroup/memory.max) $(cut -d' ' -f1 /sys/fs/cgroup/cpu.max)
else
	echo $(cat /sys/fs/cgroup/memory/memory.limit_in_bytes) $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us)
fi`

// TestRefusals has a row for each wrong or unsupported value: the code that comes back, and what the message names.
func TestRefusals(t *testing.T) {
	n := newNode(t)
	options := func(fn func(*runtimeapi.NamespaceOption)) containerChange {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) { fn(s.NamespaceOptions) })
	}
	n.checkRefusals(t, n.podConfig(), map[string]refusalRow{
		"device": {func(c *runtimeapi.ContainerConfig) { c.Devices = []*runtimeapi.Device{{HostPath: "/etc/passwd"}} }, codes.InvalidArgument, "/etc/passwd"},
		"device permissions": {func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", Permissions: "rx"}}
		}, codes.InvalidArgument, "devices.permissions"},
		"CDI device": {func(c *runtimeapi.ContainerConfig) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/no=such"}}
		}, codes.InvalidArgument, "vendor.example/no=such"},
		"no name":    {func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "" }, codes.InvalidArgument, "metadata.name"},
		"privileged": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }), codes.InvalidArgument, "privileged"},
		"unknown capability": {security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FOO"}}
		}), codes.InvalidArgument, "FOO"},
		"unknown user":       {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-here" }), codes.InvalidArgument, "nobody-here"},
		"group without user": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 1} }), codes.InvalidArgument, "run_as_group"},
		"node's network":     {options(func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE }), codes.InvalidArgument, "namespace_options.network"},
		"node's IPC":         {options(func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_NODE }), codes.InvalidArgument, "namespace_options.ipc"},
		"shared PIDs":        {options(func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD }), codes.InvalidArgument, "namespace_options.pid"},
		"log path":           {func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../x" }, codes.InvalidArgument, "log_path"},
		"relative host path": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: "v"}}
		}, codes.InvalidArgument, "host_path"},
		"propagation of an image": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Image: c.Image, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
		}, codes.InvalidArgument, "mounts[0].propagation"},
		"part of no image": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: "/tmp", ImageSubPath: "x"}}
		}, codes.InvalidArgument, "mounts[0].image_sub_path"},
		"part of nothing": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", ImageSubPath: "x"}}
		}, codes.InvalidArgument, "mounts[0].image_sub_path"},
		"memory": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -5}
		}, codes.InvalidArgument, "memory_limit_in_bytes"},
		"oom score": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 5000}
		}, codes.InvalidArgument, "oom_score_adj"},
		"no such program": {func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/program"} }, codes.Unknown, "/no/such/program"},
	})
	pod := n.podConfig()
	unknown := &runtimeapi.CreateContainerRequest{PodSandboxId: n.runPod(pod), Config: shell("c", "true"), SandboxConfig: pod}
	unknown.Config.Image.Image = "registry.k8s.io/no/such:1"
	if _, err := n.CreateContainer(t.Context(), unknown); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "no/such") {
		t.Errorf("unknown image: err = %v, want %s that names it", err, codes.NotFound)
	}
	if left, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); err != nil || len(left.Containers) > 0 {
		t.Errorf("refused containers are left: %v, %v", left, err)
	}
	for name, c := range map[string]*runtimeapi.PodSandboxConfig{
		"handler": n.podConfig(), "slice": n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/a.slice" }),
		"sysctl":   n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }),
		"metadata": n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }),
	} {
		handler := map[string]string{"handler": "no-such"}[name]
		if _, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: handler}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("pod with a wrong %s: %v", name, err)
		}
	}
	if _, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("status of an unknown pod: %v", err)
	}
	err := n.conn.Invoke(t.Context(), "/runtime.v1.RuntimeService/NoSuchCall", &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("an RPC that is not there: %v", err)
	}
}

func TestStopSignalAndGrace(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	quits := n.run(podID, pod, shell("quits", "trap 'exit 4' QUIT; while :; do sleep 0.05; done", func(c *runtimeapi.ContainerConfig) {
		c.StopSignal = runtimeapi.Signal_SIGNAL_SIGQUIT
	}))
	numbered := n.run(podID, pod, shell("numbered", "trap 'exit 5' USR2; while :; do sleep 0.05; done", func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = "docker.io/criserver/stop-number"
	}))
	for id, want := range map[string]runtimeapi.Signal{quits: runtimeapi.Signal_SIGNAL_SIGQUIT, numbered: runtimeapi.Signal_SIGNAL_SIGUSR2} {
		if got := n.status(id).StopSignal; got != want {
			t.Errorf("the status tells of the stop signal %s, want %s", got, want)
		}
	}
	deaf := n.run(podID, pod, shell("deaf", "trap '' TERM; while :; do sleep 0.05; done"))
	time.Sleep(300 * time.Millisecond) // until the traps are set: nothing tells from outside
	for id, want := range map[string]int32{quits: 4, numbered: 5, deaf: 137} {
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Fatal(err)
		}
		if st := n.status(id); st.ExitCode != want {
			t.Errorf("%s: code %d, want %d", st.Metadata.Name, st.ExitCode, want)
		}
	}
}

func TestOOMKilled(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	id := n.run(n.runPod(pod), pod, shell("hog", "dd if=/dev/zero of=/dev/null bs=100M count=1", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 20 << 20}
	}))
	if st := n.awaitExit(id); st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("status = %v", st)
	}
}
