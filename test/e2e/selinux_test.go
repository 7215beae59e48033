package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSELinuxIsIgnored on a node without: the same pods run there.
func TestSELinuxIsIgnored(t *testing.T) {
	if selinux.GetEnabled() {
		t.Skip("this kernel has SELinux")
	}
	n := newNode(t)
	options := &label{Type: "no_such_t", Level: "s0:c1,c2"}
	pod := n.podConfig(podLabel(options))
	c := shell("a", "cat /volume/file", containerLabel(options), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/volume", SelinuxRelabel: true}}
	})
	if err := os.WriteFile(filepath.Join(c.Mounts[0].HostPath, "file"), []byte("here"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, code := n.output(n.runPod(pod), pod, c); out != "here" || code != 0 {
		t.Errorf("output %q, code %d", out, code)
	}
}

// needSELinux skips where the kernel does not confine by SELinux; hack/vm/selinux.sh has one that does.
func needSELinux(t *testing.T) {
	t.Helper()
	if !selinux.GetEnabled() {
		t.Skip("SELinux is not enabled in this kernel, or has no policy")
	}
}

// newLabelledNode is newNode with a data directory that is labelled as README.md says.
func newLabelledNode(t *testing.T, extra ...string) *node {
	t.Helper()
	n := newStoppedNode(t, extra...)
	root := filepath.Join(n.dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := selinux.SetFileLabel(root, "system_u:object_r:container_ro_file_t:s0"); err != nil {
		t.Fatal(err)
	}
	n.serve()
	return n
}

type label = runtimeapi.SELinuxOption

func podLabel(l *label) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.SelinuxOptions = l }
}

func containerLabel(l *label) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.SelinuxOptions = l }
}

// labelOf is the label of the process of a container, as the kernel has it.
func (n *node) labelOf(id string) string {
	n.t.Helper()
	out, _ := n.exec(id, "tr -d '\\0' </proc/1/attr/current")
	if own, _ := n.exec(id, "tr -d '\\0' </proc/self/attr/current"); own != out {
		n.t.Errorf("a command in container %s has the label %s, and the container %s", id, own, out)
	}
	return out
}

func fileLabel(t *testing.T, path string) string {
	t.Helper()
	l, err := selinux.FileLabel(path)
	if err != nil {
		t.Errorf("label of %s: %v", path, err)
	}
	return l
}

// TestSELinux runs pods on each runtime and asks the kernel for the labels of their processes and files.
func TestSELinux(t *testing.T) {
	needSELinux(t)
	programs := handlerPrograms(t)
	n := newLabelledNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) { checkLabels(t, n, handler) })
}

const (
	processType = "system_u:system_r:container_t:"
	fileType    = "system_u:object_r:container_file_t:"
)

// TestSELinuxDeclaredVolumes: what an image declares has the label of the container that it is for, which may write to it.
func TestSELinuxDeclaredVolumes(t *testing.T) {
	needSELinux(t)
	n := newLabelledNode(t)
	n.buildDeclaring()
	pod := n.podConfig()
	podID := n.runPod(pod)
	var levels []string
	for _, name := range []string{"one", "two"} { // each has volumes of its own
		id := n.run(podID, pod, ofDeclaring(name))
		level, found := strings.CutPrefix(n.labelOf(id), processType)
		if !found {
			t.Fatalf("label = %s", n.labelOf(id))
		}
		levels = append(levels, level)
		for _, path := range []string{"/data", "/data/file", "/new/dir", "/covered"} {
			if got := fileLabel(t, fmt.Sprintf("/proc/%d/root%s", n.pid(id), path)); got != fileType+level {
				t.Errorf("%s has the label %s, want level %s", path, got, level)
			}
		}
		if out, code := n.exec(id, "echo x >/data/new && echo x >>/data/file && echo x >/new/dir/f"); code != 0 {
			t.Errorf("it cannot write: %s", out)
		}
	}
	if levels[0] != levels[1] {
		t.Errorf("the levels of one pod's containers are %q", levels)
	}
}

// TestSELinuxDevmapper: a root file system on a device has the label of its container, and can be mounted beside that for a commit.
func TestSELinuxDevmapper(t *testing.T) {
	needSELinux(t)
	config, _ := thinConfig(t, nil)
	n := newLabelledNode(t, config)
	pod := n.podConfig()
	id := n.run(n.runPodOn("thin", pod), pod, shell("a", "echo mine >/etc/mine; rm /etc/group; sleep 1000"))
	n.awaitExec(id, "test -s /etc/mine && ! test -e /etc/group")
	level, found := strings.CutPrefix(n.labelOf(id), processType)
	if !found {
		t.Fatalf("label = %s", n.labelOf(id))
	}
	for _, path := range []string{"/", "/bin/sh", "/etc/mine"} {
		if got := fileLabel(t, fmt.Sprintf("/proc/%d/root%s", n.pid(id), path)); got != fileType+level {
			t.Errorf("%s has the label %s, want level %s", path, got, level)
		}
	}
	n.image("commit", id, "example.com/labelled:1")
	for _, handler := range []string{"thin", "builtin"} {
		pod := n.podConfig()
		if out, _ := n.output(n.runPodOn(handler, pod), pod, shell("of-commit", "cat /etc/mine; ls /etc/group 2>&1 | grep -c No", func(c *runtimeapi.ContainerConfig) {
			c.Image.Image = "example.com/labelled:1"
		})); out != "mine\n1" {
			t.Errorf("the committed image on %s shows %q", handler, out)
		}
	}
}

func checkLabels(t *testing.T, n *node, handler string) {
	n.pull("docker.io/criserver/layers")
	n.pull(busyboxImage)
	pod := n.podConfig()
	podID := n.runPodOn(handler, pod)
	host := filepath.Join(t.TempDir(), "volume")
	if err := os.MkdirAll(filepath.Join(host, "kept"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := fileLabel(t, host)
	one := n.run(podID, pod, shell("one", "echo x >/etc/made; sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/volume"},
			{Image: &runtimeapi.ImageSpec{Image: busyboxImage}, ContainerPath: "/one-layer"},
			{Image: &runtimeapi.ImageSpec{Image: "docker.io/criserver/layers"}, ContainerPath: "/layers"}}
	}))
	if got := fileLabel(t, host); got != before {
		t.Errorf("the label of a mount without selinux_relabel became %s", got)
	}
	level, found := strings.CutPrefix(n.labelOf(one), processType)
	if !found || !strings.Contains(level, ":c") {
		t.Fatalf("label = %s", n.labelOf(one))
	}
	two := n.run(podID, pod, shell("two", "sleep 1000", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/volume", SelinuxRelabel: true}}
	}))
	if got := n.labelOf(two); got != processType+level {
		t.Errorf("label of the second container = %s, want level %s", got, level)
	}
	for _, path := range []string{host, filepath.Join(host, "kept")} {
		if got := fileLabel(t, path); got != fileType+level {
			t.Errorf("%s with selinux_relabel has the label %s", path, got)
		}
	}
	n.awaitExec(one, "test -s /etc/made")
	for _, path := range []string{"/", "/bin/sh", "/etc/made", "/one-layer/bin/sh", "/layers", "/dev/shm", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		if got := fileLabel(t, fmt.Sprintf("/proc/%d/root%s", n.pid(one), path)); got != fileType+level {
			t.Errorf("%s has the label %s, want level %s", path, got, level)
		}
	}
	checkOwnLabels(t, n, handler, level)
	checkInitLabel(t, n, handler)
}

// checkInitLabel looks at process 1 of a pod whose containers share a PID namespace: it has their label.
func checkInitLabel(t *testing.T, n *node, handler string) {
	pod := n.podConfig(sharedPIDs)
	podID := n.runPodOn(handler, pod)
	want := n.labelOf(n.run(podID, pod, shell("a", "sleep 1000")))
	if own, err := os.ReadFile(filepath.Join("/proc", n.podInitPID(podID), "attr/current")); strings.TrimRight(string(own), "\x00") != want {
		t.Errorf("label of the pod's init = %s, want %s; %v", own, want, err)
	}
}

func checkOwnLabels(t *testing.T, n *node, handler, other string) {
	pod := n.podConfig(podLabel(&label{Level: "s0:c5,c6"}), func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	podID := n.runPodOn(handler, pod)
	for name, c := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		want   string
	}{
		"pods":       {func(*runtimeapi.ContainerConfig) {}, processType + "s0:c5,c6"},
		"own-type":   {containerLabel(&label{Type: "container_other_t"}), "system_u:system_r:container_other_t:s0:c5,c6"},
		"own-level":  {containerLabel(&label{Level: other}), processType + other},
		"privileged": {func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }, "system_u:system_r:kernel_t:s0"},
	} {
		if got := n.labelOf(n.run(podID, pod, shell(name, "sleep 1000", c.change))); got != c.want {
			t.Errorf("%s: label = %s, want %s", name, got, c.want)
		}
	}
	// What the policy does not know is the caller's fault.
	for name, err := range map[string]error{
		"type":        refusal(n.runPodWith(handler, n.podConfig(podLabel(&label{Type: "no_such_t"})))),
		"level":       refusal(n.runPodWith(handler, n.podConfig(podLabel(&label{Level: "s0:c99999"})))),
		"container's": refusal(n.create(podID, pod, shell("bad", "true", containerLabel(&label{Role: "no_such_r"})))),
	} {
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "selinux_options") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSELinuxKeepsPodsApart has pods write to the volume of another one, where the kernel enforces the policy.
func TestSELinuxKeepsPodsApart(t *testing.T) {
	needSELinux(t)
	if selinux.EnforceMode() != selinux.Enforcing {
		t.Skip("SELinux is permissive")
	}
	n := newLabelledNode(t)
	host := filepath.Join(t.TempDir(), "volume")
	var ids, labels []string
	for i := range 2 {
		pod := n.podConfig()
		podID := n.runPod(pod)
		id := n.run(podID, pod, shell("a", "sleep 1000", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/volume", SelinuxRelabel: i == 0}}
		}))
		ids, labels = append(ids, id), append(labels, n.labelOf(id))
	}
	if labels[0] == labels[1] {
		t.Errorf("both pods have the label %s", labels[0])
	}
	for i, id := range ids {
		out, code := n.exec(id, fmt.Sprintf("echo x >/tmp/own && echo x >/volume/%d", i))
		if i == 0 && code != 0 || i == 1 && (code == 0 || !strings.Contains(out, "Permission denied")) {
			t.Errorf("pod %d: writing gives %q, %d", i, out, code)
		}
	}
	// It may be at its own volume again after a restart of the daemon.
	n.kill()
	n.start()
	if out, code := n.exec(ids[0], "echo x >/volume/again"); code != 0 {
		t.Errorf("after a restart: %s", out)
	}
	if l := n.labelOf(ids[0]); l != labels[0] {
		t.Errorf("after a restart a command has the label %s", l)
	}
}
