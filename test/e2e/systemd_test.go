package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// systemdNode is a node whose cgroups systemd makes.
func systemdNode(t *testing.T, extra ...string) *node {
	t.Helper()
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		t.Skip("systemd does not run here: make test-vm runs this test where it does")
	}
	n := newStoppedNode(t, extra...)
	n.configure("[runtime]\ncgroup_driver = \"systemd\"\n")
	n.serve()
	return n
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestSystemdDriver(t *testing.T) {
	n := systemdNode(t, handlerConfig(handlerPrograms(t)))
	c, err := n.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || c.Linux.CgroupDriver != runtimeapi.CgroupDriver_SYSTEMD {
		t.Errorf("driver = %v, %v", c, err)
	}
	n.onEach(handlerPrograms(t), func(t *testing.T, handler string) {
		checkSystemdPod(t, n, handler, "", "/criserver.slice/criserver-e2e.slice/criserver-e2e-")
		// As the kubelet names a pod's.
		parent := "/kubepods.slice/kubepods-e2e.slice/kubepods-e2e-" + strings.ReplaceAll(handler, "-", "_") + ".slice"
		checkSystemdPod(t, n, handler, parent, parent)
	})
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/pod1" })
	if _, err := n.runPodWith("", pod); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "linux.cgroup_parent") {
		t.Errorf("a parent of the other driver: %v", err)
	}
}

// scopeOf is the cgroup of a process, and the file of a limit in it.
func scopeOf(t *testing.T, pid int) (path string, file func(string) string) {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ = strings.Cut(strings.TrimSpace(string(data)), "::")
	return path, func(name string) string {
		data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
}

func checkSystemdPod(t *testing.T, n *node, handler, parent, begins string) {
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.CgroupParent = parent
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	podID := n.runPodOn(handler, pod)
	id := n.run(podID, pod, shell("main", "while :; do sleep 0.1; done", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	}))
	path, file := scopeOf(t, n.pid(id))
	scope := filepath.Base(path)
	if !strings.HasPrefix(path, begins) || scope != "criserver-"+id+".scope" {
		t.Errorf("the container is in %s, not below %s", path, begins)
	}
	if got := systemctl(t, "show", "-P", "ActiveState", scope); got != "active" {
		t.Errorf("systemd calls %s %q", scope, got)
	}
	if got := file("memory.max"); got != strconv.Itoa(64<<20) {
		t.Errorf("memory.max = %s", got)
	}
	_, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpusetCpus: "0"},
	})
	if err != nil {
		t.Fatalf("update: %v", err)
	}
	systemctl(t, "daemon-reload") // writes what systemd knows
	for name, want := range map[string]string{"memory.max": strconv.Itoa(96 << 20), "cpu.max": "50000 100000", "cpuset.cpus": "0"} {
		if got := file(name); got != want {
			t.Errorf("after an update and a reload of systemd: %s = %q, want %q", name, got, want)
		}
	}
	if out, code := n.exec(id, "cat /proc/self/cgroup"); code != 0 || !strings.HasPrefix(out, "0::/") || strings.Contains(out, "..") {
		t.Errorf("a command in it is in %q", out)
	}
	oom := n.run(podID, pod, shell("oom", "dd if=/dev/zero of=/dev/null bs=64M count=1", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	}))
	if st := n.awaitExit(oom); st.Reason != "OOMKilled" {
		t.Errorf("reason = %s (%d)", st.Reason, st.ExitCode)
	}
	n.kill()
	n.start()
	if out, _ := n.exec(id, "echo again"); out != "again" {
		t.Errorf("exec after a restart = %q", out)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Errorf("remove: %v", err)
	}
	slice := filepath.Base(filepath.Dir(path))
	if out := systemctl(t, "list-units", "--all", "--plain", "--no-legend", "criserver-*.scope", slice); out != "" {
		t.Errorf("units are left:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", filepath.Dir(path))); err == nil {
		t.Errorf("the pod's cgroup %s is left", filepath.Dir(path))
	}
}

// TestJournal has the output of a container in systemd's journal as well.
func TestJournal(t *testing.T) {
	if _, err := os.Stat("/run/systemd/journal/socket"); err != nil {
		t.Skip("there is no journal here: make test-vm runs this test where there is one")
	}
	n := newStoppedNode(t)
	n.configure("[runtime]\nlog_to_journal = true\n")
	n.serve()
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("talker", "echo out; echo err >&2; printf part"))
	n.awaitExit(id)
	if got := logLines(t, n.status(id).LogPath); strings.Join(got, "|") != "out|err|part" {
		t.Errorf("log = %q", got)
	}
	eventually(t, "the journal has the lines", func() bool {
		out, err := exec.CommandContext(t.Context(), "journalctl", "-o", "cat", "--output-fields=MESSAGE", "CONTAINER_ID="+id,
			"POD_NAME="+pod.Metadata.Name, "SYSLOG_IDENTIFIER=talker").CombinedOutput()
		return err == nil && string(out) == "out\nerr\npart\n"
	})
	out, err := exec.CommandContext(t.Context(), "journalctl", "-o", "cat", "-p", "err", "CONTAINER_ID="+id).CombinedOutput()
	if err != nil || string(out) != "err\n" {
		t.Errorf("its errors in the journal: %q, %v", out, err)
	}
}
