package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/snapshot"
)

// newGvisorNode has the handler runsc, whose containers have a kernel of their own. They use the network of their pod as it is, and write
// into their snapshots.
func newGvisorNode(t *testing.T) *node {
	t.Helper()
	program := cache("bin/runsc")
	if _, err := os.Stat(program); err != nil {
		t.Skip(err)
	}
	n := newNode(t, fmt.Sprintf("[runtimes.runsc]\ntype = \"oci\"\npath = %q\nargs = [\"--network=host\", \"--overlay2=none\"]\n", program))
	t.Cleanup(func() { // runsc keeps it for the next container
		kept := filepath.Join(n.dir, "state/runtimes/runsc/null-netns")
		if err := errors.Join(snapshot.Unmount(kept), os.RemoveAll(kept)); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestGvisor(t *testing.T) {
	n := newGvisorNode(t)
	checkHandler(t, n, "runsc")
	n.removeAll()

	pod := n.podConfig()
	podID := n.runPodOn("runsc", pod)
	data := t.TempDir()
	id := n.run(podID, pod, shell("a", "dmesg | head -n 3; echo mine >/etc/mine; rm /etc/group; echo served >/index.html; exec httpd -f -p 8080 -h /", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: data}}
	}))
	eventually(t, "its kernel is gVisor's", func() bool { out, _ := n.exec(id, "dmesg"); return strings.Contains(out, "gVisor") })
	if out, _ := n.exec(id, "echo written >/data/f; cat /proc/1/comm"); out != "httpd" {
		t.Errorf("process 1 is %q", out)
	}
	if text, err := os.ReadFile(filepath.Join(data, "f")); err != nil || string(text) != "written\n" {
		t.Errorf("the volume has %q, %v", text, err)
	}
	// Containers of a pod find each other, and the node finds the pod.
	other := n.run(podID, pod, shell("b", "sleep 1000"))
	for where, from := range map[string]func() string{
		"its neighbour": func() string { out, _ := n.exec(other, "wget -qO- http://127.0.0.1:8080/index.html"); return out },
		"the node": func() string {
			text, _ := fetched("http://" + n.ips(podID)[0] + ":8080/index.html")
			return strings.TrimSpace(string(text))
		},
	} {
		eventually(t, where+" is served", func() bool { return from() == "served" })
	}
	// What a command leaves behind ends with its time.
	_, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 66 & setsid sleep 66 & sleep 55"}, Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a command without end: %v", err)
	}
	if out, _ := n.exec(id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 6[6]'"); out != "0" {
		t.Errorf("%s processes outlive their command", out)
	}
	_, ofPod := n.create(podID, pod, shell("shared", "true", podPIDs))
	_, ofAll := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(sharedPIDs), RuntimeHandler: "runsc"})
	_, ofNode := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(nodePIDs), RuntimeHandler: "runsc"})
	for of, err := range map[string]error{"a container": ofPod, "a pod": ofAll, "a pod with the node": ofNode} {
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "namespace_options.pid") {
			t.Errorf("shared processes of %s: %v", of, err)
		}
	}
	image := "example.com/gvisor:1"
	n.image("commit", id, image)
	plain := n.podConfig()
	if out, _ := n.output(n.runPod(plain), plain, shell("of-commit", "cat /etc/mine; ls /etc/group 2>&1 | grep -c No", func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = image
	})); out != "mine\n1" {
		t.Errorf("the committed image shows %q", out)
	}
	begun := time.Now()
	if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Error(err)
	}
	t.Logf("the pod was stopped in %s", time.Since(begun))
}
