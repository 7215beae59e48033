package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/snapshot/devmapper/pooltest"
)

// newThinNode is a node whose handlers, the given programs among them, have their root file systems on thin devices, but for builtin.
func newThinNode(t *testing.T, programs map[string]string) (n *node, pool string) {
	t.Helper()
	config, pool := thinConfig(t, programs)
	return newNode(t, config), pool
}

// thinConfig is that of such a node, whose thin pool ends with the test.
func thinConfig(t *testing.T, programs map[string]string) (config, pool string) {
	t.Helper()
	if _, err := os.Stat("/dev/mapper/control"); err != nil && required("devmapper") {
		t.Fatal(err)
	}
	pool = pooltest.Make(t, 4<<30)
	return thinConfigOf(pool, programs), pool
}

func thinConfigOf(pool string, programs map[string]string) string {
	config := "[runtimes.thin]\ntype = \"builtin\"\nsnapshotter = \"devmapper\"\n"
	for name, path := range programs {
		config += fmt.Sprintf("[runtimes.%s]\ntype = \"oci\"\npath = %q\nsnapshotter = \"devmapper\"\n", name, path)
	}
	return config + fmt.Sprintf("[snapshot.devmapper]\npool = %q\nsize = \"256MiB\"\n", pool)
}

// rootDevice is what a container's root is: the type of the file system, and its device.
func (n *node) rootDevice(id string) (kind, device string) {
	n.t.Helper()
	out, _ := n.exec(id, "grep ' / / ' /proc/self/mountinfo")
	_, after, _ := strings.Cut(out, " - ")
	fields := strings.Fields(after)
	if len(fields) < 2 {
		n.t.Fatalf("the container's root is %q", out)
	}
	return fields[0], fields[1]
}

func TestDevmapper(t *testing.T) {
	programs := handlerPrograms(t)
	n, pool := newThinNode(t, programs)
	for _, handler := range append(slices.Sorted(maps.Keys(programs)), "thin") {
		n.sub(handler, func(t *testing.T) { checkThin(t, n, handler) })
	}
	pod := n.podConfig()
	id := n.run(n.runPod(pod), pod, shell("other", "sleep 1000"))
	if kind, _ := n.rootDevice(id); kind != "overlay" {
		t.Errorf("the root of another handler's container is %s", kind)
	}
	n.removeAll()
	eventually(t, "the devices of containers are gone", func() bool { return len(pooltest.Active(t, pool)) == 0 })
	for _, image := range n.visible() {
		n.removeImage(image)
	}
	n.collect()
	eventually(t, "the images' devices are gone", func() bool {
		left, err := filepath.Glob(filepath.Join(n.dir, "root/devmapper/devices/*/*"))
		return err == nil && len(left) == 1 // the empty file system
	})
}

func checkThin(t *testing.T, n *node, handler string) {
	pod := n.podConfig()
	podID := n.runPodOn(handler, pod)
	id := n.run(podID, pod, shell("first", "sleep 1000"))
	kind, device := n.rootDevice(id)
	if kind != "ext4" || !strings.HasPrefix(device, "/dev/dm-") {
		t.Errorf("the root is %s of %s, want ext4 of a device", kind, device)
	}
	if out, _ := n.exec(id, "ls -a / | grep lost"); out != "" {
		t.Errorf("there is %s", out)
	}
	if out, _ := n.exec(id, "echo mine >/etc/mine && rm /etc/group && dd if=/dev/zero of=/big bs=1M count=300 2>&1 | grep -c 'No space'; rm -f /big; cat /etc/mine"); out != "1\nmine" {
		t.Errorf("writing gives %q", out)
	}
	second := n.run(podID, pod, shell("second", "sleep 1000"))
	if out, code := n.exec(second, "ls /etc/group && ! ls /etc/mine 2>/dev/null"); code != 0 {
		t.Errorf("another container of the image sees %q", out)
	}
	n.kill()
	n.start()
	if out, _ := n.exec(id, "cat /etc/mine"); out != "mine" {
		t.Errorf("after the daemon was killed: %q", out)
	}
	// What it has written becomes an image, for any handler.
	image := "example.com/thin-" + handler + ":1"
	n.image("commit", id, image)
	const look = "cat /etc/mine; ls /etc/group 2>/dev/null; ls -d /big /dev/pts 2>/dev/null; id"
	for _, on := range []string{handler, "builtin"} {
		pod := n.podConfig()
		out, _ := n.output(n.runPodOn(on, pod), pod, shell("of-commit", look, func(c *runtimeapi.ContainerConfig) { c.Image.Image = image }))
		if !strings.HasPrefix(out, "mine\n") || strings.Contains(out, "group\n") || strings.Contains(out, "big") {
			t.Errorf("the committed image on %s shows %q", on, out)
		}
	}
	n.remove(podID)
}

func TestDevmapperOfUsers(t *testing.T) {
	n, _ := newThinNode(t, nil)
	if !slices.Contains(usersHandlers(t, n), "thin") {
		t.Fatal("the handler has no user namespaces")
	}
	checkUserNamespace(t, n, "thin")
}

func TestDevmapperDeclaredVolumes(t *testing.T) {
	n, _ := newThinNode(t, nil)
	n.buildDeclaring()
	pod := n.podConfig()
	checkDeclared(t, n, pod, n.runPodOn("thin", pod))
}

// TestDevmapperRestore takes a container from one handler's snapshotter to the other's.
func TestDevmapperRestore(t *testing.T) {
	needCRIU(t)
	n, _ := newThinNode(t, nil)
	for from, to := range map[string]string{"thin": "builtin", "builtin": "thin"} {
		n.sub(from+" to "+to, func(t *testing.T) {
			pod := n.podConfig()
			podID := n.runPodOn(from, pod)
			id := n.run(podID, pod, shell("counter", counter))
			n.counts(id)
			archive := filepath.Join(n.dir, from+".tar")
			n.checkpoint(id, archive)
			before := n.counted(id)
			n.remove(podID)
			pod = n.podConfig()
			id = n.restore(n.runPodOn(to, pod), pod, archive)
			n.checkRestored(id, before)
			if out, _ := n.exec(id, "cat /etc/issue; ls /etc/group 2>/dev/null"); out != "changed" {
				t.Errorf("its files are %q", out)
			}
		})
	}
}

// TestDevmapperWithoutPool: pods of the handler fail, with a reason, and no others; and what is there can be removed.
func TestDevmapperWithoutPool(t *testing.T) {
	n := newNode(t, "[runtimes.thin]\ntype = \"builtin\"\nsnapshotter = \"devmapper\"\n[snapshot.devmapper]\npool = \"criserver-no-such\"\n")
	if _, err := n.runPodWith("thin", n.podConfig()); err == nil || !strings.Contains(err.Error(), "snapshotter devmapper") {
		t.Errorf("a pod without a thin pool: %v", err)
	}
	pod := n.podConfig()
	if out, _ := n.output(n.runPod(pod), pod, shell("other", "echo fine")); out != "fine" {
		t.Errorf("another handler's container says %q", out)
	}
	st, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil || slices.ContainsFunc(st.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool { return h.Name == "thin" }) {
		t.Errorf("handlers are %v, %v", st.GetRuntimeHandlers(), err)
	}
}

// TestDevmapperSuspended: a pool or a device that does not answer holds what needs it, to its deadline, and nothing else.
func TestDevmapperSuspended(t *testing.T) {
	const size = 1 << 30
	first := pooltest.Make(t, 1<<20) // skips the test
	pool, data := first+"-held", first+"-data"
	loop, metadata := pooltest.Loop(t, size), pooltest.Loop(t, 16<<20)
	pooltest.Run(t, "dmsetup", "create", data, "--noudevsync", "--table", fmt.Sprintf("0 %d linear %s 0", size/512, loop))
	pooltest.Run(t, "dmsetup", "mknodes", data)
	t.Cleanup(func() { pooltest.Run(t, "dmsetup", "remove", "--noudevsync", "--retry", data) })
	pooltest.Create(t, pool, metadata, "/dev/mapper/"+data, size)
	t.Cleanup(func() { pooltest.Remove(t, pool) })
	n := newNode(t, thinConfigOf(pool, nil))
	suspend := func(device string) (resume func()) {
		t.Helper()
		pooltest.Run(t, "dmsetup", "suspend", "--noflush", "--nolockfs", "--noudevsync", device)
		resume = sync.OnceFunc(func() { pooltest.Run(t, "dmsetup", "resume", "--noudevsync", device) })
		t.Cleanup(resume)
		return resume
	}
	others := func() {
		t.Helper()
		pod := n.podConfig()
		podID := n.runPod(pod)
		if out, _ := n.output(podID, pod, shell("other", "echo fine")); out != "fine" {
			t.Errorf("another handler's container says %q", out)
		}
		n.remove(podID)
	}
	late := func(what string, call func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s: %v", what, err)
		}
	}
	pod := n.podConfig()
	podID := n.runPodOn("thin", pod)
	n.run(podID, pod, shell("first", "sleep 1000")) // the image is copied
	resume := suspend(data)
	var made *runtimeapi.CreateContainerResponse
	create := func(ctx context.Context) (err error) {
		made, err = n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: shell("second", "sleep 1000"), SandboxConfig: pod})
		return err
	}
	late("a container in a pool that does not answer", create)
	others()
	resume()
	if err := create(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := made.ContainerId
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if out, _ := n.exec(id, "echo mine >/etc/mine; cat /etc/mine"); out != "mine" {
		t.Errorf("a container that was created late says %q", out)
	}
	_, device := n.rootDevice(id)
	resume = suspend(pooltest.Run(t, "cat", filepath.Join("/sys/block", filepath.Base(device), "dm/name")))
	remove := func(ctx context.Context) error {
		_, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	}
	late("the removal of a container whose device is suspended", remove)
	others()
	resume()
	if err := remove(t.Context()); err != nil {
		t.Error(err)
	}
}
