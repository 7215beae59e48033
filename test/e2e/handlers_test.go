package e2e

import (
	"encoding/json"
	"errors"
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

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/sandbox/specfile"
)

// handlerPrograms are the OCI runtimes of the machine by the name of their handler.
func handlerPrograms(t *testing.T) map[string]string {
	t.Helper()
	programs := map[string]string{}
	for name, path := range map[string]string{"runc": "runc", "runc-new": cache("bin/runc"), "crun": "crun"} {
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
	limit := int64(16 << 20)
	if handler == "runsc" { // its kernel is in it
		limit = 64 << 20
	}
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
	oom := n.run(podID, pod, shell("oom", "dd if=/dev/zero of=/dev/null bs=256M count=1", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: limit}
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
		left, _ := filepath.Glob(filepath.Join(n.dir, "state", "runtimes", handler, "*"))
		return len(left) == 0 || handler == "runsc" && len(left) == 1 // which keeps a network namespace there
	})
}

// TestAnnotationsWithOrders has a pod and its container ask the runtime, by annotations, for what is the operator's to say: the
// specification has what the handler's patterns name, and the status has all.
func TestAnnotationsWithOrders(t *testing.T) {
	programs := handlerPrograms(t)
	config := handlerConfig(programs) + "[runtimes.open]\ntype = \"builtin\"\npod_annotations = [\"run.oci.*\"]\n"
	programs["open"] = ""
	n := newNode(t, config)
	n.onEach(programs, func(t *testing.T, handler string) {
		ofPod := map[string]string{"run.oci.pod": "1", "org.systemd.property.TimeoutStopUSec": "uint64 1"}
		given := map[string]string{
			"run.oci.handler": "no-such", "org.systemd.property.CPUWeight": "uint64 1", "org.criu.config": "/etc/shadow", "bundle": "/", "example.com/a": "b",
		}
		pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Annotations = ofPod })
		podID := n.runPodOn(handler, pod)
		id := n.run(podID, pod, shell("c", "sleep 1000", func(c *runtimeapi.ContainerConfig) { c.Annotations = given }))
		if got := n.status(id).Annotations; !maps.Equal(got, given) {
			t.Errorf("status: %q", got)
		}
		files, err := filepath.Glob(filepath.Join(n.dir, "state", "containers", id))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		var s specs.Spec
		if err := specfile.Decode(files[0], &s); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"example.com/a": "b"}
		if handler == "open" {
			want["run.oci.pod"], want["run.oci.handler"] = "1", "no-such"
		}
		maps.DeleteFunc(s.Annotations, func(name, _ string) bool { return strings.HasPrefix(name, "io.kubernetes.cri.") })
		if !maps.Equal(s.Annotations, want) {
			t.Errorf("specification: %q, want %q", s.Annotations, want)
		}
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
			if !strings.Contains(string(data), fmt.Sprintf(`"bundle":"%s/state/containers/%s"`, n.dir, id)) {
				t.Errorf("the hook was not told of the container and its bundle: %q", data)
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

// hooksOf are the configuration of hooks at the end of containers, each of a shell script.
func hooksOf(scripts ...string) string {
	var hooks []string
	for _, s := range scripts {
		hooks = append(hooks, fmt.Sprintf(`{stage = "poststop", path = "/bin/sh", args = ["sh", "-c", %q], timeout = "2s"}`, s))
	}
	return "hooks = [" + strings.Join(hooks, ", ") + "]\n"
}

// ended is what a poststop hook was told.
type ended struct{ ID, Status, Bundle string }

// told reads what hooks have written, one state a line.
func told(t *testing.T, trace string) (all []ended) {
	t.Helper()
	data, err := os.ReadFile(trace)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var e ended
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		all = append(all, e)
	}
	return all
}

// TestPoststopHooks has each runtime execute hooks when containers have ended, in whatever way, once each.
func TestPoststopHooks(t *testing.T) {
	programs := handlerPrograms(t)
	trace := filepath.Join(t.TempDir(), "trace")
	hook := hooksOf("{ cat; echo; } >>" + trace)
	config := "[runtimes.builtin]\ntype = \"builtin\"\n" + hook
	for name, path := range programs {
		config += fmt.Sprintf("[runtimes.%s]\ntype = \"oci\"\npath = %q\n", name, path) + hook
	}
	n := newNode(t, config)
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		exited := n.run(podID, pod, shell("exited", "true"))
		n.awaitExit(exited)
		orphan := n.run(podID, pod, shell("orphan", "sleep 1000"))
		pid := n.pid(orphan)
		created, err := n.create(podID, pod, shell("created", "true"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: created}); err != nil {
			t.Fatal(err)
		}
		n.kill()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.start()
		n.awaitExit(orphan)
		n.remove(podID)
		times := map[string]int{}
		for _, e := range told(t, trace) {
			times[e.ID]++
			if filepath.Base(e.Bundle) != e.ID || e.Status != "stopped" {
				t.Errorf("the hook was told %+v", e)
			}
		}
		for name, id := range map[string]string{"exited": exited, "orphan": orphan, "created": created} {
			if times[id] != 1 {
				t.Errorf("the hook of the container %s was executed %d times", name, times[id])
			}
		}
	})
}

// TestWrongPoststopHooks: hooks that fail, hang, or leave somebody behind who holds their output, hold nothing up.
func TestWrongPoststopHooks(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	n := newNode(t, "[runtimes.builtin]\ntype = \"builtin\"\n"+
		hooksOf("echo too bad >&2; exit 3", "sleep 1000", "sleep 3 & { cat; echo; } >>"+trace))
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("c", "true"))
	n.awaitExit(id)
	begin := time.Now()
	if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("the removal took %s", took)
	}
	if got := told(t, trace); len(got) != 1 || got[0].ID != id {
		t.Errorf("the last hook was told %+v", got)
	}
	log, err := os.ReadFile(filepath.Join(n.dir, "state/crimonitor.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"exit status 3: too bad", "not done after 2s"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("%q is not in crimonitor's log:\n%s", want, log)
		}
	}
}

// TestBlockIOClass gives a container the class that its pod names, or else its handler, and refuses those that are not there.
func TestBlockIOClass(t *testing.T) {
	file := filepath.Join(t.TempDir(), "blockio.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "classes:\n  any: []\n  slow:\n  - devices: [%q]\n    throttlereadbps: 5M\n", disk(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newStoppedNode(t)
	configure := func(class string) {
		n.configure(fmt.Sprintf("[runtime]\nblockio_config = %q\n[runtimes.builtin]\ntype = \"builtin\"\nblockio_class = %q\n", file, class))
	}
	configure("none-such")
	if out, err := exec.Command(binary("criserver"), "serve", "--config", n.config).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "runtimes.builtin") || !strings.Contains(string(out), "none-such") {
		t.Errorf("a class of a handler that is not there: %v: %s", err, out)
	}
	configure("slow")
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
	for class, want := range map[string]string{"any": "", "": "5000000"} {
		id := n.run(podID, pod, shell("b"+class, "sleep 1000", func(c *runtimeapi.ContainerConfig) {
			if class != "" {
				c.Annotations = map[string]string{"io.kubernetes.cri.blockio-class": class}
			}
		}))
		if limit := n.readLimit(id); !strings.Contains(limit, want) || want == "" && limit != "" {
			t.Errorf("class %q: the limit is %q, want %q", class, limit, want)
		}
	}
}

// disk is a block device of the machine.
func disk(t *testing.T) string {
	t.Helper()
	all, _ := filepath.Glob("/sys/block/*")
	for _, sys := range all {
		if dev := filepath.Join("/dev", filepath.Base(sys)); !strings.HasPrefix(dev, "/dev/loop") {
			if _, err := os.Stat(dev); err == nil {
				return dev
			}
		}
	}
	t.Skip("no block device")
	return ""
}

// readLimit is what limits the reading of a container from devices.
func (n *node) readLimit(id string) string {
	n.t.Helper()
	v1, _ := filepath.Glob("/sys/fs/cgroup/blkio" + cgroupRoot + "/*/" + id + "/blkio.throttle.read_bps_device")
	v2, _ := filepath.Glob("/sys/fs/cgroup" + cgroupRoot + "/*/" + id + "/io.max")
	files := append(v1, v2...)
	if len(files) != 1 {
		n.t.Fatalf("the files %v tell the limits of %s", files, id)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// TestPIDNamespaces has containers join the PID namespace of their pod, and of another container.
func TestPIDNamespaces(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		})
		podID := n.runPodOn(handler, pod)
		with := func(o *runtimeapi.NamespaceOption) containerChange {
			return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NamespaceOptions = o })
		}
		shared := with(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD})
		if out, _ := n.output(podID, pod, shell("shared", "cat /proc/1/comm; test $$ -gt 1 && echo not 1", shared)); out != "pod-init\nnot 1" {
			t.Errorf("in the pod's: %q", out)
		}
		target := n.run(podID, pod, shell("target", "exec sleep 4711"))
		debug := with(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target})
		if out, _ := n.output(podID, pod, shell("debug", "tr '\\0' ' ' </proc/1/cmdline", debug)); out != "sleep 4711" {
			t.Errorf("in a container's: process 1 is %q", out)
		}
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: target}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.create(podID, pod, shell("late", "true", debug)); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("in the one of an exited container: %v", err)
		}
	})
}
