package e2e

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// needCRIU skips where criu says that it does not work.
func needCRIU(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		if required("criu") {
			t.Fatalf("criu check: %v\n%s", err, out)
		}
		t.Skipf("criu check: %v\n%s", err, out)
	}
}

// criuPrograms are the OCI runtimes that checkpoint with criu.
func criuPrograms(t *testing.T) map[string]string {
	t.Helper()
	programs := handlerPrograms(t)
	if out, _ := exec.Command("crun", "--version").Output(); !bytes.Contains(out, []byte("+CRIU")) {
		delete(programs, "crun") // built without
	}
	return programs
}

// restorePrograms are those that also restore where cgroups are as here.
func restorePrograms(t *testing.T) map[string]string {
	t.Helper()
	programs := criuPrograms(t)
	out, _ := exec.Command("runc", "--version").Output()
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil && bytes.HasPrefix(out, []byte("runc version 1.1.")) {
		delete(programs, "runc") // which leaves the processes outside of the container's cgroup, and is refused
	}
	return programs
}

// counter counts in its memory, and prints and writes down where it is.
const counter = `echo changed >/etc/issue; rm /etc/group; i=0; while :; do i=$((i+1)); echo $i; echo $i >/count; sleep 0.05; done`

func (n *node) checkpoint(id, location string) {
	n.t.Helper()
	_, err := n.CheckpointContainer(n.t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location})
	if err != nil {
		n.t.Fatalf("checkpoint: %v\n%s", err, n.log())
	}
}

// counted are the numbers that a counter has printed, which must follow each other.
func (n *node) counted(id string) []int {
	n.t.Helper()
	var out []int
	for _, line := range logLines(n.t, n.status(id).LogPath) {
		i, err := strconv.Atoi(line)
		if err != nil || len(out) > 0 && i != out[len(out)-1]+1 {
			n.t.Fatalf("the counter has printed %q after %v", line, out)
		}
		out = append(out, i)
	}
	return out
}

// counts waits until a counter has printed some more numbers.
func (n *node) counts(id string) {
	n.t.Helper()
	had := len(n.counted(id))
	eventually(n.t, "the counter counts", func() bool { return len(n.counted(id)) > had+3 })
}

func TestCheckpointContainer(t *testing.T) {
	needCRIU(t)
	programs := criuPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		id := n.run(podID, pod, shell("counter", counter))
		n.counts(id)
		archive := filepath.Join(t.TempDir(), "checkpoint.tar")
		n.checkpoint(id, archive)
		n.counts(id)
		checkArchive(t, archive)
	})
}

func checkArchive(t *testing.T, archive string) {
	t.Helper()
	info, err := os.Stat(archive)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode = %s, want 0600", info.Mode())
	}
	if names, _ := filepath.Glob(filepath.Join(filepath.Dir(archive), "*")); len(names) != 1 {
		t.Errorf("beside the archive there are %v", names)
	}
	out, err := exec.Command("tar", "tf", archive).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"config.dump", "spec.dump", "checkpoint/inventory.img", "checkpoint/descriptors.json", "rootfs-diff.tar", "dump.log", "stats-dump"} {
		if !bytes.Contains(out, []byte(name+"\n")) {
			t.Errorf("the archive has no %s:\n%s", name, out)
		}
	}
	diff, err := exec.Command("sh", "-c", "tar xOf "+archive+" rootfs-diff.tar | tar t").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/issue", "etc/.wh.group", "count"} {
		if !strings.Contains("\n"+string(diff), "\n"+name+"\n") {
			t.Errorf("what the container has written has no %s:\n%s", name, diff)
		}
	}
	out, err = exec.Command(cache("bin/checkpointctl"), "inspect", "--ps-tree", "--files", archive).CombinedOutput()
	for _, word := range []string{busyboxImage, "Engine: containerd", "[1]  sh", "Root FS diff size", "pipe"} {
		if err != nil || !bytes.Contains(out, []byte(word)) {
			t.Errorf("checkpointctl tells nothing of %q, %v:\n%s", word, err, out)
		}
	}
}

func TestWrongCheckpoints(t *testing.T) {
	n := newStoppedNode(t)
	if err := os.Mkdir(filepath.Join(n.dir, "config.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.writeFile("config.d/criu.toml", "[runtime]\ncriu = '/no/such/criu'\n")
	n.serve()
	pod := n.podConfig()
	podID := n.runPod(pod)
	created, err := n.create(podID, pod, shell("created", "true"))
	if err != nil {
		t.Fatal(err)
	}
	runs := n.run(podID, pod, shell("runs", counter))
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	call := func(id, location string, timeout int64) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location, Timeout: timeout}))
		}
	}
	free := filepath.Join(dir, "free")
	checkWrong(t, n, map[string]wrong{
		"unknown":      {call("no-such", free, 0), codes.NotFound, "no-such"},
		"no location":  {call(runs, "", 0), codes.InvalidArgument, "location"},
		"relative":     {call(runs, "a/b", 0), codes.InvalidArgument, "location"},
		"NUL":          {call(runs, dir+"/a\x00b", 0), codes.InvalidArgument, "location"},
		"long name":    {call(runs, filepath.Join(dir, strings.Repeat("n", 201)), 0), codes.InvalidArgument, "location"},
		"our own":      {call(runs, filepath.Join(n.dir, "root/checkpoints/a"), 0), codes.InvalidArgument, "location"},
		"no directory": {call(runs, filepath.Join(dir, "no/such"), 0), codes.InvalidArgument, "location"},
		"taken":        {call(runs, taken, 0), codes.AlreadyExists, taken},
		"negative":     {call(runs, free, -1), codes.InvalidArgument, "timeout"},
		"not running":  {call(created, free, 0), codes.FailedPrecondition, "created"},
		"no criu":      {call(runs, free, 0), codes.Unavailable, "/no/such/criu"},
	})
	n.counts(runs)
	if data, err := os.ReadFile(taken); err != nil || string(data) != "mine" {
		t.Errorf("what was at the location is %q, %v", data, err)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("refused checkpoints have left %v", names)
	}
}

// TestCheckpointCutOff ends checkpoints at any point, by their clients and by the death of the daemon: the container goes on, and
// nothing is left of them.
func TestCheckpointCutOff(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	// Some memory, and more than one process.
	id := n.run(podID, pod, shell("counter", `x=$(head -c 30000000 /dev/zero | tr '\0' x); sleep 1000 & `+counter))
	n.counts(id)
	dir := t.TempDir()
	began := time.Now()
	n.checkpoint(id, filepath.Join(dir, "whole"))
	whole := time.Since(began)
	const seed = 20261125
	t.Logf("a checkpoint takes %s; seed %d", whole, seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	done := 0
	for i := range 40 {
		location := filepath.Join(dir, strconv.Itoa(i))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.Int64N(int64(whole))))
		_, err := n.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location})
		if i%4 == 0 && err != nil {
			n.kill()
			n.start()
		}
		cancel()
		if err == nil {
			done++
			continue
		}
		n.counts(id)
		eventually(t, "nothing is left", func() bool {
			here, _ := filepath.Glob(filepath.Join(dir, "*.partial"))
			working, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*"))
			return len(here)+len(working) == 0
		})
	}
	if done > 30 {
		t.Errorf("%d of 40 checkpoints were not cut off", done)
	}
	n.checkpoint(id, filepath.Join(dir, "last"))
	n.counts(id)
}

// TestCheckpointTimeout has criu take too long.
func TestCheckpointTimeout(t *testing.T) {
	needCRIU(t)
	n := newStoppedNode(t)
	criu, err := exec.LookPath("criu")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(n.dir, "config.d"), 0o755), os.WriteFile(filepath.Join(n.dir, "criu"),
		[]byte("#!/bin/sh\nsleep 3\nexec "+criu+" \"$@\"\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	n.writeFile("config.d/criu.toml", "[runtime]\ncriu = '"+n.dir+"/criu'\n")
	n.serve()
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("counter", counter))
	dir := t.TempDir()
	began := time.Now()
	_, err = n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: dir + "/archive", Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "1s") {
		t.Errorf("err = %v, want DeadlineExceeded", err)
	}
	if took := time.Since(began); took > 5*time.Second { // criu is waited for
		t.Errorf("it took %s", took)
	}
	n.counts(id)
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

// TestRestore restores a counter twice, the second time what the first restore has become, in pods of their own.
func TestRestore(t *testing.T) {
	needCRIU(t)
	programs := restorePrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		id := n.run(podID, pod, shell("counter", counter))
		for i := range 2 {
			n.counts(id)
			archive := filepath.Join(t.TempDir(), "checkpoint.tar")
			n.checkpoint(id, archive)
			before := n.counted(id)
			if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
				t.Fatal(err)
			}
			pod = n.podConfig()
			podID = n.runPodOn(handler, pod)
			id = n.restore(podID, pod, archive)
			n.checkRestored(id, before)
			n.checkCgroup(id)
			if out, _ := n.exec(id, "cat /proc/1/cmdline /etc/issue; ls /etc/group; touch /again; ls /again*"); !strings.Contains(out, "changed") ||
				!strings.Contains(out, "/etc/group: No such file") || !strings.Contains(out, "/again") {
				t.Errorf("restore %d has other files: %s", i, out)
			}
		}
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Fatal(err)
		}
		if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 || st.StartedAt == 0 {
			t.Errorf("after its stop the restored container is %v", st)
		}
		if left, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// checkCgroup looks whether the processes of a container are where its commands are, and its limits.
func (n *node) checkCgroup(id string) {
	n.t.Helper()
	out, _ := n.exec(id, "sort /proc/1/cgroup; sort /proc/self/cgroup")
	lines := strings.Split(out, "\n")
	if half := len(lines) / 2; half == 0 || !slices.Equal(lines[:half], lines[half:]) {
		n.t.Errorf("the container is in other cgroups than its commands:\n%s", out)
	}
}

// restored is a container whose image is a checkpoint.
func restored(image string, change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	return shell("counter", "not executed", append(change, func(c *runtimeapi.ContainerConfig) { c.Image.Image = image })...)
}

// restore creates and starts a container from a checkpoint.
func (n *node) restore(podID string, pod *runtimeapi.PodSandboxConfig, image string, change ...func(*runtimeapi.ContainerConfig)) string {
	n.t.Helper()
	resp, err := n.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: restored(image, change...), SandboxConfig: pod})
	if err != nil {
		n.t.Fatalf("create: %v\n%s", err, n.log())
	}
	if st := n.status(resp.ContainerId); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		n.t.Errorf("it is %s, want created", st.State)
	}
	if _, err := n.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId}); err != nil {
		n.t.Fatalf("start: %v\n%s", err, n.log())
	}
	return resp.ContainerId
}

// checkRestored looks whether a counter goes on where one was checkpointed that had printed before by then or shortly after.
func (n *node) checkRestored(id string, before []int) {
	n.t.Helper()
	n.counts(id)
	if first := n.counted(id)[0]; first < before[0]+2 || first > before[len(before)-1]+1 {
		n.t.Errorf("it goes on with %d, after a checkpoint at %d at most", first, before[len(before)-1])
	}
}

// TestWrongRestores has a row for each checkpoint that cannot be restored.
func TestWrongRestores(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("counter", counter))
	dir := t.TempDir()
	good := filepath.Join(dir, "good.tar")
	n.counts(id)
	n.checkpoint(id, good)
	change := func(name, script string) string {
		t.Helper()
		archive := filepath.Join(dir, name+".tar")
		tool(t, "sh", "-c", `mkdir "$0" && tar xf "$1" -C "$0" && cd "$0" && `+script+` && tar cf "$2" *`, filepath.Join(dir, name), good, archive)
		return archive
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("garbage "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	create := func(image string, change ...func(*runtimeapi.ContainerConfig)) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: podID, Config: restored(image, append(change, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "wrong" })...), SandboxConfig: pod,
			}))
		}
	}
	checkWrong(t, n, map[string]wrong{
		"no file":        {create("/no/such.tar"), codes.NotFound, "/no/such.tar"},
		"directory":      {create(dir), codes.InvalidArgument, dir},
		"fifo":           {create(filepath.Join(dir, "fifo")), codes.InvalidArgument, "regular file"},
		"garbage":        {create(garbage), codes.InvalidArgument, garbage},
		"no config":      {create(change("noconfig", "rm config.dump")), codes.InvalidArgument, "config.dump"},
		"bad config":     {create(change("badconfig", "echo '{' >config.dump")), codes.InvalidArgument, "config.dump"},
		"no spec":        {create(change("nospec", "rm spec.dump")), codes.InvalidArgument, "spec.dump"},
		"link":           {create(change("link", "ln -sf /etc/shadow checkpoint/pages-1.img")), codes.InvalidArgument, "pages-1.img"},
		"directory link": {create(change("dirlink", "rm -r checkpoint && ln -s /etc checkpoint")), codes.InvalidArgument, "checkpoint"},
		"hostile layer":  {create(change("hostile", "tar cPf rootfs-diff.tar --transform 's,.*,../../hostile,' spec.dump")), codes.InvalidArgument, "../../hostile"},
		"other image": {create(change("image", `sed -i 's/"rootfsImageRef": ".*"/"rootfsImageRef": "registry.example\/gone:1"/' config.dump`)),
			codes.NotFound, "pull the image"},
		"terminal": {create(good, func(c *runtimeapi.ContainerConfig) { c.Tty = true }), codes.InvalidArgument, "tty"},
		"mount": {create(good, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/etc", ContainerPath: "/host"}}
		}), codes.InvalidArgument, "/host"},
	})
	if left, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	// criu refuses what is not whole.
	_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: podID, Config: restored(change("pages", "rm checkpoint/pages-*")), SandboxConfig: pod,
	})
	if status.Code(err) != codes.AlreadyExists { // the counter's own name and attempt
		t.Errorf("err = %v, want AlreadyExists", err)
	}
	resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: podID, SandboxConfig: pod,
		Config: restored(filepath.Join(dir, "pages.tar"), func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt = 1 }),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId})
	if err == nil || !strings.Contains(err.Error(), "criu says") || !strings.Contains(err.Error(), "pages") {
		t.Errorf("start without pages: %v", err)
	}
	if st := n.status(resp.ContainerId); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" ||
		!strings.Contains(st.Message, "pages") {
		t.Errorf("it is %v", st)
	}
	n.counts(id)
}

// TestRestoreLife stops a container that waits to be restored, has the daemon die between its creation and its start, and restores
// with a terminal.
func TestRestoreLife(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	terminal := func(c *runtimeapi.ContainerConfig) { c.Tty = true }
	id := n.run(podID, pod, shell("counter", counter, terminal))
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	lines := func(id string) int { return len(logLines(t, n.status(id).LogPath)) }
	eventually(t, "the counter counts", func() bool { return lines(id) > 3 })
	n.checkpoint(id, archive)
	if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	attempt := uint32(0)
	create := func() string {
		attempt++
		resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
			PodSandboxId: podID, SandboxConfig: pod,
			Config: restored(archive, terminal, func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt = attempt }),
		})
		if err != nil {
			t.Fatalf("create: %v\n%s", err, n.log())
		}
		return resp.ContainerId
	}
	stopped := create()
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: stopped, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	if st := n.status(stopped); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("a container that was not restored is %v after its stop", st)
	}
	later := create()
	n.kill()
	n.start()
	if st := n.status(later); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("after the daemon's death it is %v", st)
	}
	had := lines(later)
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: later}); err != nil {
		t.Fatalf("start: %v\n%s", err, n.log())
	}
	eventually(t, "the restored counter counts", func() bool { return lines(later) > had+3 })
	if out, code := n.exec(later, "tty </proc/1/fd/1; kill -0 1"); code != 0 {
		t.Errorf("the terminal is %s", out)
	}
	// Removed without a stop, one that runs and one that waits.
	for _, id := range []string{later, create()} {
		if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*")); len(left) > 1 { // the one that was stopped
		t.Errorf("left: %v", left)
	}
}

// TestRestoreCutOff has the daemon die while containers are restored: they run then, or are undone.
func TestRestoreCutOff(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("counter", counter))
	n.counts(id)
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	n.checkpoint(id, archive)
	const seed = 20261126
	rng := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	for i := range uint32(12) {
		config := restored(archive, func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt = i + 1; c.LogPath = strconv.Itoa(int(i)) })
		go func() {
			resp, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: config, SandboxConfig: pod})
			if err == nil {
				_, _ = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId})
			}
		}()
		time.Sleep(time.Duration(rng.Int64N(int64(250 * time.Millisecond))))
		n.kill()
		n.start()
	}
	list, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]int{}
	for _, c := range list.Containers {
		states[c.State.String()]++
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			n.counts(c.Id)
		}
		if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.Id}); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	t.Logf("at the end: %v", states)
	eventually(t, "nothing is left", func() bool {
		left, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*"))
		return len(left) == 0
	})
}

// TestRestoreImage restores from images that buildah has made of an archive, if that is allowed.
func TestRestoreImage(t *testing.T) {
	needCRIU(t)
	n := newStoppedNode(t)
	if err := os.Mkdir(filepath.Join(n.dir, "config.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.serve()
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("counter", counter))
	b := builder{t, t.TempDir()}
	n.counts(id)
	n.checkpoint(id, filepath.Join(b.dir, "checkpoint.tar"))
	before := n.counted(id)
	image := func(name string, annotation ...string) string {
		t.Helper()
		b.build(name, "FROM scratch\nADD checkpoint.tar /\n", annotation...)
		b.buildah("push", "--tls-verify=false", name, "docker://"+registryAddr+"/restore/"+name+":v1")
		n.pull("docker.io/restore/" + name + ":v1")
		return "docker.io/restore/" + name + ":v1"
	}
	crio := image("crio", "--annotation", "io.kubernetes.cri-o.annotations.checkpoint.name=counter")
	ours := image("ours", "--annotation", "org.criu.checkpoint.container.name=counter")
	none := image("none")
	create := func(image string) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: restored(image), SandboxConfig: pod}))
		}
	}
	checkWrong(t, n, map[string]wrong{"not allowed": {create(crio), codes.PermissionDenied, "runtime.restore_images"}})
	if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.writeFile("config.d/restore.toml", "[runtime]\nrestore_images = true\n")
	n.kill()
	n.start()
	for i, image := range []string{crio, ours} {
		id := n.restore(podID, pod, image, func(c *runtimeapi.ContainerConfig) {
			c.Metadata.Attempt, c.LogPath = uint32(i+1), image[len(image)-4:]
		})
		n.checkRestored(id, before)
		st, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busyboxImage}})
		if got := n.status(id); err != nil || got.ImageId != st.Image.Id {
			t.Errorf("its image is %s, want that of the container, %s, %v", got.ImageId, st.GetImage().GetId(), err)
		}
	}
	// An image of the same files that does not say that it is a checkpoint is an image.
	if err := create(none)(t.Context(), n); err == nil {
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{}); err == nil {
			t.Error("an image of files was started")
		}
	}
}

// TestRestoreMounts looks whether what the node mounts after a restore comes into the container, where it did before.
func TestRestoreMounts(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	dir := t.TempDir()
	tool(t, "mount", "-t", "tmpfs", "shared", dir)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	tool(t, "mount", "--make-shared", dir)
	mounts := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/host", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
	}
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("counter", counter, mounts))
	n.counts(id)
	archive := filepath.Join(t.TempDir(), "checkpoint.tar")
	n.checkpoint(id, archive)
	id = n.restore(podID, pod, archive, mounts, func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt, c.LogPath = 1, "restored.log" })
	if err := os.Mkdir(filepath.Join(dir, "later"), 0o755); err != nil {
		t.Fatal(err)
	}
	tool(t, "mount", "-t", "tmpfs", "later", filepath.Join(dir, "later"))
	if out, _ := n.exec(id, "grep ' /host/later ' /proc/mounts"); !strings.HasPrefix(out, "later ") {
		t.Errorf("the container sees %q", out)
	}
	if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	tool(t, "umount", filepath.Join(dir, "later"))
}

// checkpointPod has a deadline, as the CRI asks for.
func (n *node) checkpointPod(r *runtimeapi.CheckpointPodRequest) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return refusal(n.CheckpointPod(ctx, r))
}

// partners are two containers of a pod that count together: one counts in a shared file what the other has counted.
func (n *node) partners(pod *runtimeapi.PodSandboxConfig, podID string) (leads, follows *runtimeapi.ContainerConfig, ids []string) {
	n.t.Helper()
	shared := n.t.TempDir()
	mount := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: shared, ContainerPath: "/shared"}}
		c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b c")}}
		c.Labels = map[string]string{"a": "b"}
	}
	leads = shell("leads", counter, mount)
	follows = shell("follows", "trap 'exit 3' TERM; "+counter, mount)
	for _, c := range []*runtimeapi.ContainerConfig{leads, follows} {
		ids = append(ids, n.run(podID, pod, c))
	}
	for _, id := range ids {
		n.counts(id)
	}
	return leads, follows, ids
}

// TestCheckpointPod checkpoints two containers at one moment and restores them in a pod of their own.
func TestCheckpointPod(t *testing.T) {
	needCRIU(t)
	programs := restorePrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		leads, follows, ids := n.partners(pod, podID)
		output := t.TempDir()
		if err := n.checkpointPod(&runtimeapi.CheckpointPodRequest{PodSandboxId: podID, OutputPath: output, ContainerIds: ids}); err != nil {
			t.Fatalf("%v\n%s", err, n.log())
		}
		before := map[string][]int{}
		for i, id := range ids {
			n.counts(id)
			before[[]string{"leads", "follows"}[i]] = n.counted(id)
		}
		if left, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		state := tool(t, "sh", "-c", "cd "+output+" && find . -type f | sort | xargs sha256sum")
		other := n.podConfig()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		resp, err := n.RestorePod(ctx, &runtimeapi.RestorePodRequest{
			CheckpointPath: output, Config: other, RuntimeHandler: handler, ContainerConfigs: []*runtimeapi.ContainerConfig{follows, leads},
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, n.log())
		}
		if len(resp.RestoredContainers) != 2 || resp.RestoredContainers[0].Name != "follows" || resp.RestoredContainers[1].Name != "leads" {
			t.Fatalf("restored: %v", resp)
		}
		for _, c := range resp.RestoredContainers {
			st := n.status(c.ContainerId)
			if st.State != runtimeapi.ContainerState_CONTAINER_CREATED || st.Labels["a"] != "b" {
				t.Errorf("%s is %v", c.Name, st)
			}
			if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
				t.Fatalf("%v\n%s", err, n.log())
			}
			n.checkRestored(c.ContainerId, before[c.Name])
			n.checkCgroup(c.ContainerId)
		}
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: resp.RestoredContainers[0].ContainerId, Timeout: 20}); err != nil {
			t.Fatal(err)
		}
		if st := n.status(resp.RestoredContainers[0].ContainerId); st.ExitCode != 3 {
			t.Errorf("the restored handler of SIGTERM: %v", st)
		}
		if now := tool(t, "sh", "-c", "cd "+output+" && find . -type f | sort | xargs sha256sum"); now != state {
			t.Errorf("the checkpoint was changed:\n%s\n%s", state, now)
		}
		if left, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// TestWrongPodCheckpoints has a row for each request that is refused; then nothing has been made.
func TestWrongPodCheckpoints(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod, other := n.podConfig(), n.podConfig()
	podID, otherID := n.runPod(pod), n.runPod(other)
	leads, follows, ids := n.partners(pod, podID)
	stranger := n.run(otherID, other, shell("stranger", counter))
	ended := n.run(podID, pod, shell("ended", "true"))
	n.awaitExit(ended)
	stopped := n.runPod(n.podConfig())
	if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped}); err != nil {
		t.Fatal(err)
	}
	output, full := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	row := func(change func(*runtimeapi.CheckpointPodRequest)) func(context.Context, *node) error {
		return func(_ context.Context, n *node) error {
			r := &runtimeapi.CheckpointPodRequest{PodSandboxId: podID, OutputPath: output, ContainerIds: ids}
			change(r)
			return n.checkpointPod(r)
		}
	}
	type request = runtimeapi.CheckpointPodRequest
	checkWrong(t, n, map[string]wrong{
		"no pod":         {row(func(r *request) { r.PodSandboxId = "no-such" }), codes.NotFound, "no-such"},
		"stopped pod":    {row(func(r *request) { r.PodSandboxId = stopped }), codes.FailedPrecondition, stopped},
		"no containers":  {row(func(r *request) { r.ContainerIds = nil }), codes.InvalidArgument, "container_ids"},
		"twice":          {row(func(r *request) { r.ContainerIds = []string{ids[0], ids[1], ids[0]} }), codes.InvalidArgument, "twice"},
		"of another pod": {row(func(r *request) { r.ContainerIds = []string{ids[0], stranger} }), codes.InvalidArgument, stranger},
		"ended":          {row(func(r *request) { r.ContainerIds = []string{ids[0], ended} }), codes.FailedPrecondition, ended},
		"no container":   {row(func(r *request) { r.ContainerIds = []string{"no-such"} }), codes.NotFound, "no-such"},
		"option":         {row(func(r *request) { r.Options = map[string]string{"fast": "yes"} }), codes.InvalidArgument, "fast"},
		"relative":       {row(func(r *request) { r.OutputPath = "out" }), codes.InvalidArgument, "output_path"},
		"no directory":   {row(func(r *request) { r.OutputPath = output + "/no" }), codes.InvalidArgument, "output_path"},
		"not empty":      {row(func(r *request) { r.OutputPath = full }), codes.InvalidArgument, "mine"},
	})
	if entries, err := os.ReadDir(output); err != nil || len(entries) > 0 {
		t.Errorf("refused checkpoints have left %v, %v", entries, err)
	}

	if err := n.checkpointPod(&runtimeapi.CheckpointPodRequest{PodSandboxId: podID, OutputPath: output, ContainerIds: ids}); err != nil {
		t.Fatal(err)
	}
	restore := func(change func(*runtimeapi.RestorePodRequest)) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			r := &runtimeapi.RestorePodRequest{CheckpointPath: output, Config: n.podConfig(), ContainerConfigs: []*runtimeapi.ContainerConfig{
				proto.Clone(leads).(*runtimeapi.ContainerConfig), proto.Clone(follows).(*runtimeapi.ContainerConfig),
			}}
			change(r)
			return refusal(n.RestorePod(ctx, r))
		}
	}
	type again = runtimeapi.RestorePodRequest
	second := func(change func(*runtimeapi.ContainerConfig)) func(context.Context, *node) error {
		return restore(func(r *again) { change(r.ContainerConfigs[1]) })
	}
	type config = runtimeapi.ContainerConfig
	checkWrong(t, n, map[string]wrong{
		"no checkpoint":     {restore(func(r *again) { r.CheckpointPath = full }), codes.InvalidArgument, "pod.options"},
		"relative path":     {restore(func(r *again) { r.CheckpointPath = "x" }), codes.InvalidArgument, "checkpoint_path"},
		"handler":           {restore(func(r *again) { r.RuntimeHandler = "no-such" }), codes.InvalidArgument, "no-such"},
		"option":            {restore(func(r *again) { r.Options = map[string]string{"a": "b"} }), codes.InvalidArgument, "options"},
		"no configuration":  {restore(func(r *again) { r.Config = nil }), codes.InvalidArgument, "config"},
		"the pod is there":  {restore(func(r *again) { r.Config = pod }), codes.AlreadyExists, podID},
		"none":              {restore(func(r *again) { r.ContainerConfigs = nil }), codes.InvalidArgument, "container_configs"},
		"one":               {restore(func(r *again) { r.ContainerConfigs = r.ContainerConfigs[:1] }), codes.InvalidArgument, "follows"},
		"one more":          {restore(func(r *again) { r.ContainerConfigs = append(r.ContainerConfigs, shell("more", "true")) }), codes.InvalidArgument, "more"},
		"one twice":         {restore(func(r *again) { r.ContainerConfigs = append(r.ContainerConfigs, leads) }), codes.InvalidArgument, "leads"},
		"image":             {second(func(c *config) { c.Image.Image = "registry.k8s.io/pause:3.9" }), codes.NotFound, "pause"},
		"command":           {second(func(c *config) { c.Command = []string{"sh"} }), codes.InvalidArgument, "command"},
		"args":              {second(func(c *config) { c.Args = []string{"more"} }), codes.InvalidArgument, "args"},
		"working directory": {second(func(c *config) { c.WorkingDir = "/tmp" }), codes.InvalidArgument, "working_dir"},
		"environment":       {second(func(c *config) { c.Envs[0].Value = []byte("d") }), codes.InvalidArgument, "envs"},
		"user": {second(func(c *config) { c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 7} }),
			codes.InvalidArgument, "run_as_user"},
		"capability": {second(func(c *config) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		}), codes.InvalidArgument, "capabilities"},
		"seccomp": {second(func(c *config) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		}), codes.InvalidArgument, "seccomp"},
		"mount":    {second(func(c *config) { c.Mounts = nil }), codes.InvalidArgument, "/shared"},
		"terminal": {second(func(c *config) { c.Tty = true }), codes.InvalidArgument, "tty"},
	})
	list, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 3 {
		t.Errorf("refused restores have left pods: %v, %v", list, err)
	}
	if left, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCheckpointPodCutOff ends checkpoints of a pod at any point: nothing of them is left, and its containers go on.
func TestCheckpointPodCutOff(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	_, _, ids := n.partners(pod, podID)
	began := time.Now()
	if err := n.checkpointPod(&runtimeapi.CheckpointPodRequest{PodSandboxId: podID, OutputPath: t.TempDir(), ContainerIds: ids}); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	const seed = 20261127
	t.Logf("a checkpoint takes %s; seed %d", whole, seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	done := 0
	for i := range 16 {
		output := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.Int64N(int64(whole))))
		_, err := n.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: podID, OutputPath: output, ContainerIds: ids})
		cancel()
		if err == nil {
			done++
			continue
		}
		if i%4 == 0 {
			n.kill()
			n.start()
		}
		eventually(t, "nothing is left", func() bool {
			here, err := os.ReadDir(output) // which is there
			working, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*"))
			return err == nil && len(here)+len(working) == 0
		})
		for _, id := range ids {
			n.counts(id)
		}
	}
	if done > 12 {
		t.Errorf("%d of 16 checkpoints were not cut off", done)
	}
}

// TestRestoreFields has a row for what may keep a container from being checkpointed or restored.
func TestRestoreFields(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	namespaces := func(fn func(o *runtimeapi.NamespaceOption)) (func(*runtimeapi.PodSandboxConfig), func(*runtimeapi.ContainerConfig)) {
		return func(c *runtimeapi.PodSandboxConfig) { fn(c.Linux.SecurityContext.NamespaceOptions) },
			func(c *runtimeapi.ContainerConfig) { fn(c.Linux.SecurityContext.NamespaceOptions) }
	}
	container := func(fn func(c *runtimeapi.LinuxContainerSecurityContext)) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { fn(c.Linux.SecurityContext) }
	}
	type row struct {
		pod       func(*runtimeapi.PodSandboxConfig)
		container func(*runtimeapi.ContainerConfig)
	}
	const script = `i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done`
	rows := map[string]row{
		"user": {nil, container(func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.RunAsUser, c.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1000}
			c.NoNewPrivs, c.Capabilities = true, &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		})},
		"seccomp": {nil, container(func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		})},
		"read-only": {nil, container(func(c *runtimeapi.LinuxContainerSecurityContext) { c.ReadonlyRootfs = true })},
		"stdin":     {nil, func(c *runtimeapi.ContainerConfig) { c.Stdin = true }},
		"limits": {nil, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000}
		}},
		"privileged": {func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true },
			container(func(c *runtimeapi.LinuxContainerSecurityContext) { c.Privileged = true })},
	}
	add := func(name string, fn func(o *runtimeapi.NamespaceOption)) {
		pod, container := namespaces(fn)
		rows[name] = row{pod, container}
	}
	add("host network", func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE })
	add("PIDs of the pod", func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD })
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			if name == "user" && !holds(t, unix.CAP_SYS_RESOURCE) {
				t.Skip("without CAP_SYS_RESOURCE criu cannot read the limits of another user's process (prlimit(2))")
			}
			pod := n.podConfig()
			if row.pod != nil {
				row.pod(pod)
			}
			podID := n.runPod(pod)
			id := n.run(podID, pod, shell("counter", script, row.container))
			n.counts(id)
			archive := filepath.Join(t.TempDir(), "checkpoint.tar")
			if _, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: archive}); err != nil {
				t.Fatal(err)
			}
			before := n.counted(id)
			limit := n.status(id).GetResources().GetLinux().GetMemoryLimitInBytes()
			if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
			id = n.restore(podID, pod, archive, row.container, func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt, c.LogPath = 1, "restored.log" })
			n.checkRestored(id, before)
			if name != "PIDs of the pod" { // where the first process is another one
				n.checkCgroup(id)
			}
			if got := n.status(id).GetResources().GetLinux().GetMemoryLimitInBytes(); got != limit {
				t.Errorf("its memory limit is %d, want %d", got, limit)
			}
		})
	}
}
