package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestDevices(t *testing.T) {
	programs := handlerPrograms(t)
	n := newStoppedNode(t, handlerConfig(programs))
	if err := os.Mkdir(filepath.Join(n.dir, "config.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.writeFile("config.d/cdi.toml", "[runtime]\ncdi_spec_dirs = ['/no/such/cdi', '"+cdiDir(t)+"']\n")
	n.serve()
	n.checkFields(t, programs, map[string]fieldRow{
		"a node": {"ls -l /dev/x | cut -c1; (echo a >/dev/x) 2>/dev/null || echo full; echo a >/dev/y && echo written", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/full", ContainerPath: "/dev/x", Permissions: "rwm"}, {HostPath: "/dev/null", ContainerPath: "/dev/y"}}
		}, "c\nfull\nwritten"},
		"a directory": {"ls /mnt/net", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/net", ContainerPath: "/mnt/net", Permissions: "rw"}}
		}, "tun"},
		"read only by the cgroup": {"head -c 0 /dev/k && echo read; (: >/dev/k) 2>/dev/null || echo refused", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/k", Permissions: "r"}}
		}, "read\nrefused"},
		"not asked for": {"mknod /x c 10 229 && (head -c 0 </x) 2>/dev/null || echo refused", nil, "refused"},
		"CDI": {"echo $GPU; ls /dev/gpu-a /gpu/passwd", func(c *runtimeapi.ContainerConfig) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/gpu=a"}}
		}, "a\n/dev/gpu-a\n/gpu/passwd"},
		"CDI by annotation": {"echo $GPU", func(c *runtimeapi.ContainerConfig) {
			c.Annotations = map[string]string{"cdi.k8s.io/plugin": "vendor.example/gpu=a"}
		}, "a"},
	})
}

// TestCDIHooks has hooks of a CDI device run, with handlers that have hooks of their own and those that have none.
func TestCDIHooks(t *testing.T) {
	dir, trace := t.TempDir(), t.TempDir()
	if err := os.Chmod(trace, 0o777); err != nil {
		t.Fatal(err)
	}
	hook := fmt.Sprintf(`{"hookName": "createContainer", "path": "/bin/sh", "args": ["sh", "-c", "cat >>%s/cdi"]}`, trace)
	text := `{"cdiVersion": "0.7.0", "kind": "vendor.example/gpu", "devices": [
		{"name": "a", "containerEdits": {"additionalGids": [4711, 44], "hooks": [` + hook + `]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "vendor.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	programs := handlerPrograms(t)
	n := newStoppedNode(t, handlerConfig(programs), "[runtimes.hooks]\ntype = \"builtin\"\n"+
		fmt.Sprintf("hooks = [{stage = \"createContainer\", path = \"/bin/sh\", args = [\"sh\", \"-c\", \"cat >>%s/handler\"]}]\n", trace))
	n.configure(fmt.Sprintf("[runtime]\ncdi_spec_dirs = [%q]\n", dir))
	n.serve()
	told := func(t *testing.T, who, id string) {
		t.Helper()
		if data, err := os.ReadFile(filepath.Join(trace, who)); err != nil || !strings.Contains(string(data), id) {
			t.Errorf("the hook of %s was not told of %s: %q, %v", who, id, data, err)
		}
	}
	programs["hooks"] = ""
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		id := n.run(n.runPodOn(handler, pod), pod, shell("c", "exec sleep 1000", func(c *runtimeapi.ContainerConfig) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/gpu=a"}}
		}))
		told(t, "cdi", id)
		if groups := n.status(id).User.Linux.SupplementalGroups; !slices.Equal(groups, []int64{0, 44, 4711}) {
			t.Errorf("the status tells of the groups %v", groups)
		}
		if out, _ := n.exec(id, "grep Groups /proc/1/status | cut -f2"); out != "0 44 4711" {
			t.Errorf("groups = %q", out)
		}
		if handler == "hooks" {
			told(t, "handler", id)
		}
	})
}

// cdiDir is a directory with the description of one device.
func cdiDir(t *testing.T) string {
	dir := t.TempDir()
	text := `{"cdiVersion": "0.6.0", "kind": "vendor.example/gpu", "devices": [{"name": "a", "containerEdits": {
		"env": ["GPU=a"], "deviceNodes": [{"path": "/dev/gpu-a", "hostPath": "/dev/null"}],
		"mounts": [{"hostPath": "/etc", "containerPath": "/gpu", "options": ["ro", "bind"]}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "vendor.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
