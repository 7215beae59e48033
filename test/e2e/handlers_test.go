package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// handlerPrograms are the OCI runtimes of the machine by the name of their handler.
func handlerPrograms(t *testing.T) map[string]string {
	t.Helper()
	programs := map[string]string{}
	for name, path := range map[string]string{"runc": "runc", "runc-new": cache("bin/runc"), "crun": "crun", "runsc": "runsc"} {
		if found, err := exec.LookPath(path); err == nil {
			programs[name] = found
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		delete(programs, "crun") // it refuses hybrid cgroups; see TestRuntimes of the monitor
	}
	return programs
}

func handlerConfig(programs map[string]string) string {
	var out strings.Builder
	for name, path := range programs {
		fmt.Fprintf(&out, "[runtimes.%s]\ntype = \"oci\"\npath = %q\n", name, path)
	}
	return out.String()
}

func (n *node) runPodWith(handler string, c *runtimeapi.PodSandboxConfig) (string, error) {
	n.t.Helper()
	resp, err := n.RunPodSandbox(n.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
	return resp.GetPodSandboxId(), err
}

// onEach runs a part of the test with the built-in runtime and with each of programs.
func (n *node) onEach(programs map[string]string, fn func(t *testing.T, handler string)) {
	for _, handler := range append(slices.Sorted(maps.Keys(programs)), "builtin") {
		n.sub(handler, func(t *testing.T) { fn(t, handler) })
	}
}

// TestHandlers has each runtime do what the built-in one does.
func TestHandlers(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	st, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(st.RuntimeHandlers); got != len(programs)+2 || st.RuntimeHandlers[0].Name != "" {
		t.Errorf("handlers = %v, want the default, the built-in one and %v", st.RuntimeHandlers, programs)
	}
	_, err = n.runPodWith("nobody", n.podConfig())
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `runtime_handler: invalid: unknown runtime handler "nobody"`) {
		t.Errorf("unknown handler: %v", err)
	}
	n.onEach(programs, func(t *testing.T, handler string) { checkHandler(t, n, handler) })
}

func checkHandler(t *testing.T, n *node, handler string) {
	pod := n.podConfig()
	podID := n.runPodOn(handler, pod)
	if st, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID}); err != nil || st.Status.RuntimeHandler != handler {
		t.Errorf("handler = %q, %v", st.GetStatus().GetRuntimeHandler(), err)
	}
	if out, code := n.output(podID, pod, shell("code", "echo out; exit 7")); out != "out" || code != 7 {
		t.Errorf("output = %q, code %d", out, code)
	}
	id := n.run(podID, pod, shell("stubborn", "trap '' TERM; while :; do sleep 0.1; done"))
	if out, code := n.exec(id, "hostname; exit 3"); out != pod.Hostname || code != 3 {
		t.Errorf("exec = %q, %d", out, code)
	}
	n.kill()
	n.start()
	if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a restart of the daemon it is %s", st.State)
	}
	if out, _ := n.exec(id, "echo again"); out != "again" {
		t.Errorf("exec after a restart = %q", out)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if st := n.awaitExit(id); st.ExitCode != 137 {
		t.Errorf("code of a killed container = %d", st.ExitCode)
	}
	oom := n.run(podID, pod, shell("oom", "dd if=/dev/zero of=/dev/null bs=64M count=1", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	}))
	if st := n.awaitExit(oom); st.Reason != "OOMKilled" {
		t.Errorf("reason = %s (%d)", st.Reason, st.ExitCode)
	}
	bad, err := n.create(podID, pod, shell("bad", "", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such"} }))
	if err == nil {
		_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: bad})
	}
	if err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	eventually(t, "the runtime has forgotten the containers", func() bool {
		left, _ := os.ReadDir(filepath.Join(n.dir, "state", "runtimes", handler))
		return len(left) == 0
	})
}

// TestHandlerGone takes the handler of a running container out of the configuration.
func TestHandlerGone(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip(err)
	}
	n := newNode(t, handlerConfig(map[string]string{"runc": runc}))
	pod := n.podConfig()
	podID := n.runPodOn("runc", pod)
	id := n.run(podID, pod, shell("a", "sleep 1000"))
	text, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(text), "[runtimes.runc]")
	if err := os.WriteFile(n.config, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.start()
	if out, _ := n.exec(id, "echo here"); out != "here" {
		t.Errorf("exec = %q", out)
	}
	_, err = n.create(podID, pod, shell("b", "exit 0"))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "configure it again") {
		t.Errorf("create: %v", err)
	}
	if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Errorf("remove: %v", err)
	}
}

// TestHandlerLatency tells what a container costs with each runtime; it fails only when one takes seconds.
func TestHandlerLatency(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.pull(busyboxImage)
	programs["builtin"] = ""
	const rounds = 15
	for name := range programs {
		pod := n.podConfig()
		podID := n.runPodOn(name, pod)
		var all []time.Duration
		for i := range rounds {
			begin := time.Now()
			n.run(podID, pod, shell(fmt.Sprint("c", i), "sleep 1000"))
			all = append(all, time.Since(begin))
		}
		t.Logf("%s: create and start of a container, median of %d: %s", name, rounds, median(all))
		if m := median(all); m > 3*time.Second {
			t.Errorf("%s: %s", name, m)
		}
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range 20 {
			c := shell(fmt.Sprint("p", i), "exit 0")
			wg.Go(func() {
				resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: c, SandboxConfig: pod})
				if err == nil {
					_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId})
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		wg.Wait()
		t.Logf("%s: 20 at once: %s", name, time.Since(begin))
		if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
			t.Error(err)
		}
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// TestHandlerDefaults looks inside containers for what the operator gives those of a handler.
func TestHandlerDefaults(t *testing.T) {
	programs := handlerPrograms(t)
	programs["builtin"] = ""
	trace := filepath.Join(t.TempDir(), "hooks")
	zone := filepath.Join("/usr/share/zoneinfo", "Asia/Tokyo")
	var config strings.Builder
	for name, path := range programs {
		kind := "type = \"builtin\""
		if path != "" {
			kind = fmt.Sprintf("type = \"oci\"\npath = %q", path)
		}
		fmt.Fprintf(&config, `[runtimes.%s]
%s
container_env = ["FROM_NODE=yes", "PATH=/no"]
ulimits = {nofile = {soft = 123, hard = 321}, nproc = {soft = 5000, hard = 6000}}
sysctls = {"net.ipv4.ip_unprivileged_port_start" = "81"}
devices = ["/dev/kmsg:r"]
pids_limit = 33
hooks = [{stage = "createRuntime", path = "/bin/sh", args = ["sh", "-c", "cat >>%s"]}]
`, name, kind, trace)
		if _, err := os.Stat(zone); err == nil {
			config.WriteString("timezone = \"Asia/Tokyo\"\n")
		}
	}
	n := newNode(t, config.String())
	for name := range programs {
		n.sub(name, func(t *testing.T) {
			pod := n.podConfig()
			podID := n.runPodOn(name, pod)
			id := n.run(podID, pod, shell("a", "sleep 1000"))
			for script, want := range map[string]string{
				"echo $FROM_NODE": "yes",
				// Not the soft limit of files: Debian's runc 1.1.5, a program of Go 1.19, makes it the hard one.
				"ulimit -Hn": "321",
				"awk '/Max processes/ {print $3, $4}' /proc/self/limits": "5000 6000",
				"cat /proc/sys/net/ipv4/ip_unprivileged_port_start":      "81",
				"test -c /dev/kmsg && echo there":                        "there",
			} {
				if out, _ := n.exec(id, script); out != want {
					t.Errorf("%s: %q, want %q", script, out, want)
				}
			}
			if _, err := os.Stat(zone); err == nil {
				if out, _ := n.exec(id, "tail -n 1 /etc/localtime"); out != "JST-9" {
					t.Errorf("time zone = %q", out)
				}
			}
			limit, _ := filepath.Glob("/sys/fs/cgroup/pids" + cgroupRoot + "/*/" + id + "/pids.max")
			unified, _ := filepath.Glob("/sys/fs/cgroup" + cgroupRoot + "/*/" + id + "/pids.max")
			for _, file := range append(limit, unified...) {
				if data, _ := os.ReadFile(file); strings.TrimSpace(string(data)) != "33" {
					t.Errorf("%s = %q", file, data)
				}
			}
			if len(limit)+len(unified) == 0 {
				t.Error("no pids.max was found")
			}
			data, _ := os.ReadFile(trace)
			if !strings.Contains(string(data), id) {
				t.Errorf("the hook was not told of the container: %q", data)
			}
		})
	}
}

// TestHandlersThatCheckpoint asks verbose Status which handlers can make checkpoints, with criu and without.
func TestHandlersThatCheckpoint(t *testing.T) {
	programs := handlerPrograms(t)
	n := newStoppedNode(t, handlerConfig(programs))
	criu := filepath.Join(n.dir, "criu") // need not work to be found
	if err := os.WriteFile(criu, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.configure(fmt.Sprintf("[runtime]\ncriu = %q\n", criu))
	n.serve()
	told := func() (info struct {
		Handlers map[string]bool
		Reason   string
	}) {
		t.Helper()
		st, err := n.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err == nil {
			err = json.Unmarshal([]byte(st.Info["checkpoints"]), &info)
		}
		if err != nil || len(info.Handlers) != len(st.RuntimeHandlers) {
			t.Errorf("handlers = %v, %v; there are %v", info, err, st.GetRuntimeHandlers())
		}
		return info
	}
	with := told()
	if !with.Handlers[""] || !with.Handlers["builtin"] || with.Reason != "" {
		t.Errorf("with criu: %+v", with)
	}
	for name, path := range programs {
		version, _ := exec.Command(path, "--version").Output()
		features, _ := exec.Command(path, "features").Output()
		want := strings.Contains(string(version), "+CRIU") || strings.Contains(string(features), `runc.checkpoint.enabled": "true"`)
		if with.Handlers[name] != want {
			t.Errorf("%s: %v, want %v", name, with.Handlers[name], want)
		}
	}
	if err := os.Remove(criu); err != nil {
		t.Fatal(err)
	}
	without := told()
	for name, can := range without.Handlers {
		if can || !strings.Contains(without.Reason, criu) {
			t.Errorf("without criu: %q: %v, for %q", name, can, without.Reason)
		}
	}
}

// TestBlockIOClass gives a container the class that its pod names, and refuses those that are not there.
func TestBlockIOClass(t *testing.T) {
	file := filepath.Join(t.TempDir(), "blockio.yaml")
	if err := os.WriteFile(file, []byte("classes:\n  any: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newStoppedNode(t)
	text, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "[runtime]\n", fmt.Sprintf("[runtime]\nblockio_config = %q\n", file), 1))
	if err := os.WriteFile(n.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	n.serve()
	pod := n.podConfig()
	podID := n.runPod(pod)
	for key, wanted := range map[string]struct {
		class string
		code  codes.Code
	}{
		"io.kubernetes.cri.blockio-class": {"none-such", codes.InvalidArgument},
		"io.kubernetes.cri.rdt-class":     {"gold", codes.InvalidArgument},
	} {
		_, err := n.create(podID, pod, shell("a", "exit 0", func(c *runtimeapi.ContainerConfig) {
			c.Annotations = map[string]string{key: wanted.class}
		}))
		if status.Code(err) != wanted.code || !strings.Contains(err.Error(), wanted.class) {
			t.Errorf("%s: %v", key, err)
		}
	}
	c := shell("b", "echo out", func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{"io.kubernetes.cri.blockio-class": "any"}
	})
	if out, _ := n.output(podID, pod, c); out != "out" {
		t.Errorf("output = %q", out)
	}
}
