package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// node is a criserver with directories, a cgroup and a bridge of its own.
type node struct {
	t      *testing.T
	dir    string
	config string
	cmd    *exec.Cmd
	conn   *grpc.ClientConn
	runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
	pods   int
	nri    string // the directory of what NRI needs
}

const (
	cgroupRoot = "/criserver-e2e"
	bridge     = "crie2e0"
	subnet4    = "10.213.0.0/16"
	subnet6    = "fd00:213::/64"
)

// newNode starts a criserver, which ends with the test; then nothing of it may be left on the machine. extra is appended to
// its configuration.
func newNode(t *testing.T, extra ...string) *node {
	t.Helper()
	n := newStoppedNode(t, extra...)
	n.serve()
	return n
}

// newStoppedNode has a directory and a configuration. What is to be mounted in it comes before serve.
func newStoppedNode(t *testing.T, extra ...string) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("pods need root")
	}
	n := &node{t: t, dir: t.TempDir()}
	if err := os.Chmod(filepath.Dir(n.dir), 0o711); err != nil { // for root in a user namespace to pass
		t.Fatal(err)
	}
	n.config = filepath.Join(n.dir, "config.toml")
	mirrors := ""
	for _, host := range []string{"registry.k8s.io", "gcr.io", "k8s.gcr.io", "docker.io"} {
		mirrors += fmt.Sprintf("[registry.mirrors.%q]\nendpoints = [\"http://%s\"]\n", host, registryAddr)
	}
	text := fmt.Sprintf(`socket = "%[1]s/criserver.sock"
state = "%[1]s/state"
root = "%[1]s/root"
[runtime]
cgroup_root = "%[2]s"
cgroup_driver = "%[8]s"
[cni]
conf_dir = "%[1]s/cni"
[cni.builtin]
bridge = "%[3]s"
subnets = ["%[4]s", "%[5]s"]
%[6]s
%[7]s`, n.dir, cgroupRoot, bridge, subnet4, subnet6, mirrors, strings.Join(extra, "\n"),
		cmp.Or(os.Getenv("CRISERVER_E2E_CGROUP_DRIVER"), "cgroupfs"))
	if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// configure adds a file to the configuration of a node, which reads it when it starts next. The file replaces a former one.
func (n *node) configure(text string) {
	n.t.Helper()
	dir := filepath.Join(n.dir, "config.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "test.toml"), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// serve starts the criserver of a node and ends it with the test, which checks that nothing of it is left.
func (n *node) serve() {
	n.t.Helper()
	before := machineState()
	n.start()
	n.t.Cleanup(func() {
		n.removeAll()
		n.stop()
		checkNothingLeft(n.t, n, before)
	})
}

func binary(name string) string {
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", name))
	if err != nil {
		panic(err)
	}
	return path
}

// launch starts the daemon without waiting for it.
func (n *node) launch() {
	n.t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "criserver.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(binary("criserver"), "serve", "--config", n.config, "--log-level", "debug")
	n.cmd.Stdout, n.cmd.Stderr = log, log
	// An own session: a signal to the test's group must not reach it before the test cleans up.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatalf("start criserver (make build): %v", err)
	}
}

// start starts the daemon and waits until it serves.
func (n *node) start() {
	n.t.Helper()
	n.launch()
	n.await()
}

// connect makes the clients; they connect when they are used.
func (n *node) connect() {
	n.t.Helper()
	if n.conn != nil {
		return
	}
	conn, err := grpc.NewClient("unix://"+n.dir+"/criserver.sock",
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.conn = conn
	n.RuntimeServiceClient, n.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
}

func (n *node) await() {
	n.t.Helper()
	n.connect()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		n.conn.Connect()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		st, err := n.Status(ctx, &runtimeapi.StatusRequest{})
		cancel()
		if err == nil && st.Status.Conditions[0].Status && st.Status.Conditions[1].Status {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("criserver does not serve: %v %v\n%s", st, err, n.log())
		}
		n.conn.ResetConnectBackoff()
	}
}

// kill ends the daemon as a crash would.
func (n *node) kill() {
	n.t.Helper()
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
}

// stop ends the daemon as an administrator would.
func (n *node) stop() {
	n.t.Helper()
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- n.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			n.t.Errorf("criserver ended with %v:\n%s", err, n.log())
		}
	case <-time.After(30 * time.Second):
		_ = n.cmd.Process.Kill()
		n.t.Errorf("criserver does not stop:\n%s", n.log())
	}
	if n.conn != nil {
		_ = n.conn.Close()
		n.conn = nil
	}
}

// log is the end of the daemon's and the monitor's logs.
func (n *node) log() string {
	var out string
	for _, name := range []string{"criserver.log", "state/crimonitor.log"} {
		data, _ := os.ReadFile(filepath.Join(n.dir, name))
		var lines []string
		for line := range strings.Lines(string(data)) {
			if name == "criserver.log" || !strings.Contains(line, "level=debug") { // the runtime library tells much
				lines = append(lines, line)
			}
		}
		out += strings.Join(lines[max(0, len(lines)-40):], "")
	}
	return out
}

// removeAll removes all pods, as a kubelet that drains its node.
func (n *node) removeAll() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	list, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Errorf("list pods: %v\n%s", err, n.log())
		return
	}
	for _, p := range list.Items {
		if _, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			n.t.Errorf("stop pod: %v\n%s", err, n.log())
		}
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			n.t.Errorf("remove pod: %v\n%s", err, n.log())
		}
	}
}

// crictl runs the real client and returns what it prints.
func (n *node) crictl(args ...string) string {
	n.t.Helper()
	out, err := n.tryCrictl(args...)
	if err != nil {
		n.t.Fatalf("crictl %s: %v\n%s\n%s", strings.Join(args, " "), err, out, n.log())
	}
	return out
}

func (n *node) tryCrictl(args ...string) (string, error) {
	n.t.Helper()
	endpoint := "unix://" + n.dir + "/criserver.sock"
	cmd := exec.Command(cache("bin/crictl"), append([]string{"--config", os.DevNull, "--runtime-endpoint", endpoint,
		"--image-endpoint", endpoint, "--timeout", "60s"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		return stdout.String() + stderr.String(), err
	}
	return strings.TrimSpace(stdout.String()), nil
}

// cache is a file that "make deps" provides.
func cache(name string) string {
	path, err := filepath.Abs(filepath.Join("..", "..", ".cache", name))
	if err != nil {
		panic(err)
	}
	return path
}

// podConfig is a plain pod. Each has a name of its own.
func (n *node) podConfig(change ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	n.pods++
	name := fmt.Sprintf("pod-%d", n.pods)
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(n.dir, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	for _, fn := range change {
		fn(c)
	}
	return c
}

// runPod runs a pod.
func (n *node) runPod(c *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	return n.runPodOn("", c)
}

// runPodOn runs a pod of a runtime handler, "" the default.
func (n *node) runPodOn(handler string, c *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	id, err := n.runPodWith(handler, c)
	if err != nil {
		n.t.Fatalf("run pod: %v\n%s", err, n.log())
	}
	return id
}

// sub runs a part of the test, whose failures are its own.
func (n *node) sub(name string, fn func(t *testing.T)) {
	outer := n.t
	outer.Run(name, func(t *testing.T) {
		n.t = t
		defer func() { n.t = outer }()
		fn(t)
	})
}

// shell is a container that runs a script on busybox.
func shell(name, script string, change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: busyboxImage},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	for _, fn := range change {
		fn(c)
	}
	return c
}

// create creates a container; its image is pulled if it is not there.
func (n *node) create(podID string, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (string, error) {
	n.t.Helper()
	n.pull(c.Image.Image)
	resp, err := n.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: c, SandboxConfig: pod})
	return resp.GetContainerId(), err
}

// run creates and starts a container.
func (n *node) run(podID string, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	id, err := n.create(podID, pod, c)
	if err == nil {
		_, err = n.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err != nil {
		n.t.Fatalf("run container: %v\n%s", err, n.log())
	}
	return id
}

func (n *node) pull(image string) {
	n.t.Helper()
	spec := &runtimeapi.ImageSpec{Image: image}
	st, err := n.images.ImageStatus(n.t.Context(), &runtimeapi.ImageStatusRequest{Image: spec})
	if err == nil && st.Image == nil {
		_, err = n.images.PullImage(n.t.Context(), &runtimeapi.PullImageRequest{Image: spec})
	}
	if err != nil {
		n.t.Fatalf("pull %s: %v\n%s", image, err, n.log())
	}
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	resp, err := n.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatalf("container status: %v\n%s", err, n.log())
	}
	return resp.Status
}

// awaitExit waits until a container has exited.
func (n *node) awaitExit(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	var st *runtimeapi.ContainerStatus
	eventually(n.t, "container exits", func() bool {
		st = n.status(id)
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

// exec runs a script in a container.
func (n *node) exec(id, script string) (string, int32) {
	n.t.Helper()
	resp, err := n.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 30})
	if err != nil {
		n.t.Fatalf("exec %q: %v\n%s", script, err, n.log())
	}
	return strings.TrimSpace(string(resp.Stdout) + string(resp.Stderr)), resp.ExitCode
}

// output runs a script to its end in a container of its own and returns its log without the stamps.
func (n *node) output(podID string, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (string, int32) {
	n.t.Helper()
	id := n.run(podID, pod, c)
	st := n.awaitExit(id)
	return strings.TrimSpace(strings.Join(logLines(n.t, st.LogPath), "\n")), st.ExitCode
}

// logLines are the lines of a CRI log without stamps.
func logLines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(parts) != 4 {
			t.Fatalf("no CRI log entry: %q", line)
		}
		lines = append(lines, parts[3])
	}
	return lines
}

// eventually waits for a condition that nothing announces to the outside.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 30 s: %s", what)
		}
	}
}

// required tells whether the machine must have something, as the one that runs the tests says: to skip a test would hide a fault then.
func required(what string) bool {
	return slices.Contains(strings.Split(os.Getenv("CRISERVER_E2E_REQUIRE"), ","), what)
}
