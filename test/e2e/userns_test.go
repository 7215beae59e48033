package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// usersHost is who root in the tests' user namespaces is on the host.
const usersHost = 1 << 20

func mappings() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{ContainerId: 0, HostId: usersHost, Length: 65536}}
}

func usersPod(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD, Uids: mappings(), Gids: mappings(),
	}
}

// usersHandlers are the names of the handlers that say that they have user namespaces; the test is skipped if none does.
func usersHandlers(t *testing.T, n *node) []string {
	t.Helper()
	st, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range st.RuntimeHandlers {
		if h.Name != "" && h.Features.UserNamespaces {
			names = append(names, h.Name)
		}
	}
	if len(names) == 0 && required("users") {
		t.Fatalf("no user namespaces here:\n%s", n.log())
	}
	if len(names) == 0 {
		t.Skipf("no user namespaces here:\n%s", n.log())
	}
	return names
}

func TestUserNamespace(t *testing.T) {
	n := newNode(t, handlerConfig(handlerPrograms(t)))
	for _, handler := range usersHandlers(t, n) {
		n.sub(handler, func(t *testing.T) { checkUserNamespace(t, n, handler) })
	}
}

func checkUserNamespace(t *testing.T, n *node, handler string) {
	pod := n.podConfig(usersPod, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
	})
	podID := n.runPodOn(handler, pod)
	st, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil || fmt.Sprint(st.Status.Linux.Namespaces.Options.UsernsOptions) != fmt.Sprint(pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions) {
		t.Errorf("the status has %v, %v", st, err)
	}
	volume := filepath.Join(n.dir, "volume-"+handler)
	if err := os.MkdirAll(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(volume, "of-1000"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(volume, "of-1000"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	id := n.run(podID, pod, shell("main", "while :; do sleep 0.1; done", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: volume, ContainerPath: "/mapped", UidMappings: mappings(), GidMappings: mappings()},
			{HostPath: volume, ContainerPath: "/unmapped"},
		}
	}))
	for script, want := range map[string]string{
		"id -u": "0",
		"awk '{print $1, $2, $3}' /proc/self/uid_map":                                        fmt.Sprintf("0 %d 65536", usersHost),
		"stat -c %u:%g /bin/busybox /etc/passwd /etc/hostname /dev/shm /":                    "0:0\n0:0\n0:0\n0:0\n0:0",
		"echo x >/root-file && chown 1000:1000 /root-file && stat -c %u /root-file":          "1000",
		"touch /dev/shm/f && stat -c %u:%a /dev/shm/f":                                       "0:644",
		"stat -c %u /mapped/of-1000 && touch /mapped/new && stat -c %u /mapped/new":          "1000\n0",
		"stat -c %u /unmapped/of-1000; touch /unmapped/no 2>&1 | grep -o Permission":         "65534\nPermission",
		"(echo 1 >/proc/sys/kernel/sysrq) 2>/dev/null || echo refused":                       "refused",
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced": "0\n1",
		"ip -o addr show eth0 | grep -c inet":                                                "3",
		"hostname":                                                                           pod.Hostname,
	} {
		if out, _ := n.exec(id, script); out != want {
			t.Errorf("%s\n got %q\nwant %q", script, out, want)
		}
	}
	pid := n.pid(id)
	var of unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", pid), &of); err != nil || of.Uid != usersHost {
		t.Errorf("on the host the process is of user %d, %v", of.Uid, err)
	}
	if err := unix.Stat(filepath.Join(volume, "new"), &of); err != nil || of.Uid != 0 {
		t.Errorf("a file in a mapped volume is of user %d, %v", of.Uid, err)
	}
	other := n.run(podID, pod, shell("user", "while :; do sleep 0.1; done", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	}))
	if a, b := n.userNS(pid), n.userNS(n.pid(other)); a != b || a == n.userNS(os.Getpid()) {
		t.Errorf("the containers are in the user namespaces %s and %s", a, b)
	}
	n.kill()
	n.start()
	if out, _ := n.exec(other, "id -u"); out != "1000" {
		t.Errorf("after a restart of the daemon: user %q", out)
	}
	n.checkCommittedOwners(t, id)
}

func (n *node) userNS(pid int) string {
	n.t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		n.t.Fatal(err)
	}
	return ns
}

// checkCommittedOwners: what a container in a user namespace has written has in an image the owners that it saw.
func (n *node) checkCommittedOwners(t *testing.T, id string) {
	t.Helper()
	const image = "example.com/committed-users:1"
	n.image("commit", id, image)
	pod := n.podConfig()
	out, _ := n.output(n.runPod(pod), pod, shell("committed", "stat -c %u /root-file /bin/busybox", func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = image
	}))
	if out != "1000\n0" {
		t.Errorf("owners in the committed image = %q", out)
	}
}

// TestUserNamespaceKinds has the pods that share more, or less, than a plain one.
func TestUserNamespaceKinds(t *testing.T) {
	n := newNode(t, handlerConfig(handlerPrograms(t)))
	for _, handler := range usersHandlers(t, n) {
		n.sub(handler, func(*testing.T) { checkUserNamespaceKinds(n, handler) })
	}
	st, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil || !st.Features.UserNamespacesHostNetwork {
		t.Errorf("the feature is not told: %v, %v", st, err)
	}
}

func onHostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Hostname = ""
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
}

func checkUserNamespaceKinds(n *node, handler string) {
	for name, row := range map[string]struct {
		pod    func(*runtimeapi.PodSandboxConfig)
		script string
		want   string
	}{
		"shared PID namespace": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}, "cat /proc/1/comm; stat -c %u /proc/1", "pod-init\n65535"},
		"host network": {onHostNetwork, "stat -c %u /; ls /sys/class/net | grep -c lo; touch /sys/x 2>&1 | grep -o Read-only; ip link set lo down 2>&1 | grep -o permitted",
			"0\n1\nRead-only\npermitted"},
		"small": {func(c *runtimeapi.PodSandboxConfig) {
			u := c.Linux.SecurityContext.NamespaceOptions.UsernsOptions
			u.Uids[0].Length, u.Gids[0].Length = 1000, 1000
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}, "stat -c %u / /proc/1", "0\n0"},
		"privileged": {func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true },
			"mkdir /m && mount -t tmpfs x /m && echo mounted; ip link set lo down && echo down; mknod /n c 1 3 2>&1 | grep -o permitted", "mounted\ndown\npermitted"},
	} {
		n.sub(name, func(t *testing.T) {
			pod := n.podConfig(usersPod, row.pod)
			out, _ := n.output(n.runPodOn(handler, pod), pod, shell("c", row.script, func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions = pod.Linux.SecurityContext.NamespaceOptions
				c.Linux.SecurityContext.Privileged = pod.Linux.SecurityContext.Privileged
			}))
			if out != row.want {
				t.Errorf("out = %q, want %q", out, row.want)
			}
		})
	}
}

// TestHandlerWithoutFeatures has a runtime that does not say what it can do, as runc before 1.1 and crun before 1.8.6.
func TestHandlerWithoutFeatures(t *testing.T) {
	program := filepath.Join(t.TempDir(), "old")
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip(err)
	}
	// Its arguments begin with those for all commands.
	script := "#!/bin/sh\nfor a; do [ \"$a\" != features ] || { echo unknown command >&2; exit 1; }; done\nexec " + runc + " \"$@\"\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, handlerConfig(map[string]string{"old": program}))
	st, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range st.RuntimeHandlers {
		if f := h.Features; h.Name == "old" && (f.RecursiveReadOnlyMounts || f.UserNamespaces) {
			t.Errorf("features = %v, want none", f)
		}
	}
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){"a pod": usersPod, "on the host's network": func(c *runtimeapi.PodSandboxConfig) {
		usersPod(c)
		onHostNetwork(c)
	}} {
		if _, err := n.runPodWith("old", n.podConfig(change)); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `"old" has no user namespaces`) {
			t.Errorf("user namespace, %s: %v", name, err)
		}
	}
	pod := n.podConfig()
	podID := n.runPodOn("old", pod)
	_, err = n.create(podID, pod, shell("rro", "true", mounting(&runtimeapi.Mount{HostPath: n.dir, Readonly: true, RecursiveReadOnly: true})))
	// The kubelet knows this error by the beginning of its text.
	if status.Code(err) != codes.Unknown || !strings.HasPrefix(status.Convert(err).Message(), crierrors.ErrRROUnsupported.Error()) {
		t.Errorf("recursive read-only mount: %v", err)
	}
	if out, _ := n.output(podID, pod, shell("c", "echo works")); out != "works" {
		t.Errorf("out = %q", out)
	}
}

func TestWrongUserNamespaces(t *testing.T) {
	n := newNode(t)
	usersHandlers(t, n)
	for name, row := range map[string]struct {
		change func(*runtimeapi.NamespaceOption)
		names  string
	}{
		"no mappings":    {func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids = nil }, "userns_options: invalid: uids: the ID 0 is not mapped"},
		"no groups":      {func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids = nil }, "userns_options: invalid: gids: the ID 0 is not mapped"},
		"container mode": {func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = runtimeapi.NamespaceMode_CONTAINER }, "userns_options.mode"},
		"node mode":      {func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = runtimeapi.NamespaceMode_NODE }, "userns_options"},
		"host's root":    {func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 0 }, "has the host's ID 0"},
		"no terminals":   {func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids[0].Length = 5 }, "the ID 5, of terminals"},
		"host PIDs":      {func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE }, "namespace_options.pid"},
		"host IPC":       {func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_NODE }, "namespace_options.ipc"},
	} {
		pod := n.podConfig(usersPod)
		row.change(pod.Linux.SecurityContext.NamespaceOptions)
		if _, err := n.runPodWith("", pod); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), row.names) {
			t.Errorf("%s: %v, want one that names %q", name, err, row.names)
		}
	}
	pod := n.podConfig(usersPod)
	n.checkRefusals(t, pod, map[string]refusalRow{
		"user beyond": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 65536}
		}, codes.InvalidArgument, "security_context.run_as_user"},
		"group beyond": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.SupplementalGroups = []int64{70000}
		}, codes.InvalidArgument, "no group 70000"},
		"other mappings": {func(c *runtimeapi.ContainerConfig) {
			other := mappings()
			other[0].HostId++
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: other, Gids: mappings()}
		}, codes.InvalidArgument, "not those of the pod"},
		"mount": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: n.dir, ContainerPath: "/m", UidMappings: mappings()}}
		}, codes.InvalidArgument, "mounts[0].mappings"},
		"other mount": {func(c *runtimeapi.ContainerConfig) {
			other := mappings()
			other[0].HostId++
			c.Mounts = []*runtimeapi.Mount{{HostPath: n.dir, ContainerPath: "/m", UidMappings: other, GidMappings: mappings()}}
		}, codes.InvalidArgument, "mounts[0].uidMappings: invalid: they are not those of the pod's"},
	})
	n.checkNoCheckpoint(t)
	plain := n.podConfig()
	n.checkRefusals(t, plain, map[string]refusalRow{
		"mapped mount": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: n.dir, ContainerPath: "/m", UidMappings: mappings(), GidMappings: mappings()}}
		}, codes.InvalidArgument, "mounts[0].uidMappings"},
	})
}

// checkNoCheckpoint: what could not be restored is not checkpointed.
func (n *node) checkNoCheckpoint(t *testing.T) {
	t.Helper()
	pod := n.podConfig(usersPod)
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("c", "while :; do sleep 0.1; done"))
	location := filepath.Join(n.dir, "archive")
	_, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "user namespace") {
		t.Errorf("checkpoint in a user namespace: %v", err)
	}
	if _, err := os.Lstat(location); err == nil {
		t.Error("it left an archive")
	}
}
