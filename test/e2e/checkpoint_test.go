package e2e

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// needCRIU skips where criu says that it does not work.
func needCRIU(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("criu check: %v\n%s", err, out)
	}
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
	programs := handlerPrograms(t)
	delete(programs, "runsc") // has no criu
	n := newNode(t, handlerConfig(programs))
	programs["builtin"] = ""
	for handler := range programs {
		t.Run(handler, func(t *testing.T) {
			pod := n.podConfig()
			podID, err := n.runPodWith(handler, pod)
			if err != nil {
				t.Fatal(err)
			}
			id := n.run(podID, pod, shell("counter", counter))
			n.counts(id)
			archive := filepath.Join(t.TempDir(), "checkpoint.tar")
			n.checkpoint(id, archive)
			n.counts(id)
			checkArchive(t, archive)
		})
	}
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
