package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attacksImage has programs that try what containers must not do, see test/images/guest/tools.
const attacksImage = "docker.io/criserver/attacks"

func attacking(c *runtimeapi.ContainerConfig) { c.Image.Image = attacksImage }

func sharedPIDs(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
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
