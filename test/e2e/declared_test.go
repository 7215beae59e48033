package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// declaring is an image that declares volumes: one with content, one that it has no directory for, one that a mount may cover, one below
// a link, and paths that are none.
const declaring = "example.com/declaring:1"

func (n *node) buildDeclaring() {
	n.t.Helper()
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("builder", `mkdir -p /data/deep /covered /real/below && echo content >/data/file && echo image >/covered/file &&
		echo below >/real/below/file && chown 7:8 /data/file && chmod 4711 /data/file && ln /data/file /data/deep/same && ln -s file /data/link &&
		ln -s /etc/passwd /data/out && chown 5:6 /data && chmod 1770 /data && ln -s /real /alias && echo x >/plain`))
	if st := n.awaitExit(id); st.ExitCode != 0 {
		n.t.Fatalf("the image is not made: %v\n%s", st, n.log())
	}
	n.image("commit", id, declaring, "--change", "VOLUME /data /new/dir /covered /alias/below /plain /etc/hosts /sys/fs/cgroup")
	n.remove(podID)
}

// volumesOf are the directories of a container's volumes.
func (n *node) volumesOf(id string) []string {
	n.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(n.dir, "root/overlay/s", "*"+id, "v/*")) // devmapper has a prefix
	if err != nil {
		n.t.Fatal(err)
	}
	return dirs
}

func ofDeclaring(name string, change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	return shell(name, "while :; do sleep 0.1; done", append(change, func(c *runtimeapi.ContainerConfig) { c.Image.Image = declaring })...)
}

func readOnlyRoot(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }

// TestDeclaredVolumes has what an image declares in a container, with each runtime.
func TestDeclaredVolumes(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.buildDeclaring()
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		checkDeclared(t, n, pod, n.runPodOn(handler, pod))
	})
}

// TestDeclaredVolumesOfUsers is the same in user namespaces, where each sees the owners that the image has.
func TestDeclaredVolumesOfUsers(t *testing.T) {
	n := newNode(t, handlerConfig(handlerPrograms(t)))
	handlers := usersHandlers(t, n)
	n.buildDeclaring()
	for _, handler := range handlers {
		n.sub(handler, func(t *testing.T) {
			pod := n.podConfig(usersPod)
			podID := n.runPodOn(handler, pod)
			id := checkDeclared(t, n, pod, podID)
			var of unix.Stat_t
			if err := unix.Stat(n.volumesOf(id)[0], &of); err != nil || of.Uid != 0 { // of /alias/below
				t.Errorf("on disk the volume is of user %d, %v", of.Uid, err)
			}
		})
	}
}

func checkDeclared(t *testing.T, n *node, pod *runtimeapi.PodSandboxConfig, podID string) string {
	host := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(host, "file"), []byte("host\n"), 0o644), os.Chmod(host, 0o755)); err != nil {
		t.Fatal(err)
	}
	mounted := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/covered/", Readonly: true}}
	}
	id := n.run(podID, pod, ofDeclaring("first", readOnlyRoot, mounted))
	for script, want := range map[string]string{
		"stat -c %u:%g:%a /data /data/file; stat -c %h /data/deep/same":                                                  "5:6:1770\n7:8:4711\n2",
		"cat /data/link /real/below/file; readlink /data/out; cmp /data/file /data/deep/same":                            "content\nbelow\n/etc/passwd",
		"echo new >/data/new && echo new >/new/dir/new && echo new >/real/below/new && stat -c %u:%a /data/new /new/dir": "0:644\n0:755",
		"touch /x /data/../x 2>&1 | grep -c Read-only; cat /covered/file /plain":                                         "2\nhost\nx",
		"touch /covered/x 2>&1 | grep -c Read-only; test -e /sys/fs/cgroup/new || echo none":                             "1\nnone",
		"awk '$3==\"overlay\" && $2!=\"/\"' /proc/mounts":                                                                "",
	} {
		if out, _ := n.exec(id, script); out != want {
			t.Errorf("%s\n got %q\nwant %q", script, out, want)
		}
	}
	if dirs := n.volumesOf(id); len(dirs) != 3 {
		t.Errorf("the volumes are %v, want three", dirs)
	}
	other := n.run(podID, pod, ofDeclaring("other"))
	const content = "/data:\ndeep\nfile\nlink\nout\n\n/new/dir:"
	out, _ := n.exec(other, "cat /data/file /covered/file; ls /data /new/dir; touch /covered/x && echo wrote")
	if out != "content\nimage\n"+content+"\nwrote" {
		t.Errorf("another container of the image sees %q", out)
	}
	n.kill()
	n.start()
	if out, _ := n.exec(id, "cat /data/new"); out != "new" {
		t.Errorf("after a restart of the daemon: %q", out)
	}
	const committed = "example.com/declared-and-committed:1"
	n.image("commit", id, committed)
	plain := n.podConfig()
	out, _ = n.output(n.runPod(plain), plain, shell("committed", "ls /data /new/dir", func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = committed
	}))
	if out != content {
		t.Errorf("the image of the container has %q in the volumes", out)
	}
	if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: other}); err != nil {
		t.Error(err)
	}
	if dirs := n.volumesOf(other); len(dirs) > 0 {
		t.Errorf("a removed container has left %v", dirs)
	}
	if log := n.log(); !strings.Contains(log, "path=/plain") || !strings.Contains(log, "path=/sys/fs/cgroup") {
		t.Errorf("what is ignored is not in the log:\n%s", log)
	}
	return id
}

// TestDeclaredVolumesIgnored is what an operator may want instead.
func TestDeclaredVolumesIgnored(t *testing.T) {
	n := newNode(t)
	n.buildDeclaring()
	n.stop()
	n.configure("[runtime]\nimage_volumes = \"ignore\"\n")
	n.start()
	pod := n.podConfig()
	id := n.run(n.runPod(pod), pod, ofDeclaring("first", readOnlyRoot))
	if out, _ := n.exec(id, "cat /data/file; touch /data/x 2>&1 | grep -c Read-only; ls /new 2>&1 | grep -c 'No such'"); out != "content\n1\n1" {
		t.Errorf("the container sees %q", out)
	}
	if dirs := n.volumesOf(id); len(dirs) > 0 {
		t.Errorf("it has %v", dirs)
	}
}

// TestDeclaredVolumesKilled kills the daemon while volumes are being filled: nothing of them is left.
func TestDeclaredVolumesKilled(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	builder := n.run(podID, pod, shell("builder", `mkdir /data; i=0; while [ $i -lt 4000 ]; do echo $i >/data/$i; i=$((i+1)); done`))
	n.awaitExit(builder)
	n.image("commit", builder, declaring, "--change", "VOLUME /data")
	if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: builder}); err != nil {
		t.Fatal(err)
	}
	inVolumes := func() []string {
		found, _ := filepath.Glob(filepath.Join(n.dir, "root/overlay/s/*/v/*/1*"))
		return found
	}
	go func() { // it fails with the daemon
		request := &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: ofDeclaring("cut"), SandboxConfig: pod}
		_, _ = n.CreateContainer(t.Context(), request)
	}()
	eventually(t, "the volume is being filled", func() bool { return len(inVolumes()) > 0 })
	n.kill()
	if len(inVolumes()) == 0 {
		t.Fatal("the daemon was not killed in the middle")
	}
	n.start()
	eventually(t, "nothing is left of it", func() bool { return len(inVolumes()) == 0 })
	id := n.run(podID, pod, ofDeclaring("cut"))
	if out, _ := n.exec(id, "ls /data | wc -l"); out != "4000" {
		t.Errorf("made again it has %s files", out)
	}
}

// TestDeclaredVolumesRestored: what a container has in its volumes goes with its checkpoint, files that it has open too.
func TestDeclaredVolumesRestored(t *testing.T) {
	needCRIU(t)
	programs := restorePrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.buildDeclaring()
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		id := n.run(podID, pod, shell("counter", "exec 3>>/data/open; chown 9:9 /data; rm /data/link; "+counter,
			func(c *runtimeapi.ContainerConfig) { c.Image.Image = declaring }))
		n.counts(id)
		n.exec(id, "echo before >/data/before; echo before >/new/dir/before")
		archive := filepath.Join(t.TempDir(), "checkpoint.tar")
		n.checkpoint(id, archive)
		n.exec(id, "echo after >/data/after")
		before := n.counted(id)
		id = n.restore(podID, pod, archive, func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt, c.LogPath = 1, "restored.log" })
		n.checkRestored(id, before)
		out, _ := n.exec(id, "cat /data/file /data/before /new/dir/before; ls /data; stat -c %u /data; readlink /proc/1/fd/3")
		if out != "content\nbefore\nbefore\nbefore\ndeep\nfile\nopen\nout\n9\n/data/open" {
			t.Errorf("restored, the container sees %q", out)
		}
	})
}
