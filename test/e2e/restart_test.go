package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDaemonKilled kills the daemon while one container prints and another one ends.
func TestDaemonKilled(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	prints := n.run(podID, pod, shell("prints", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"))
	ends := n.run(podID, pod, shell("ends", "sleep 1; exit 7"))
	before := time.Now()
	if found := leftovers(n, machineState()); len(found) < 4 { // containers, snapshots, crimonitor, addresses, …
		t.Errorf("what looks for leftovers sees only %v while pods run", found)
	}
	n.kill()
	time.Sleep(2 * time.Second)
	n.start()

	if st := n.status(ends); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 7 {
		t.Errorf("container that ended meanwhile: %v", st)
	} else if at := time.Unix(0, st.FinishedAt); at.Before(before) || at.After(before.Add(1900*time.Millisecond)) {
		t.Errorf("it ended %s after the daemon was killed, want about 1 s", at.Sub(before))
	}
	if out := n.crictl("ps", "--id", prints, "--state", "Running", "-q"); out != prints {
		t.Errorf("crictl ps = %q, want %s", out, prints)
	}
	if out, code := n.exec(prints, "echo alive"); out != "alive" || code != 0 {
		t.Errorf("exec = %q, %d", out, code)
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: prints, Timeout: 0}); err != nil {
		t.Fatal(err)
	}
	lines := logLines(t, n.status(prints).LogPath)
	if len(lines) < 30 { // an emulated machine prints slowly
		t.Errorf("only %d lines were printed", len(lines))
	}
	for i, line := range lines {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
}

// TestSecondDaemonIsRefused starts a second daemon on the state directory of the first.
func TestSecondDaemonIsRefused(t *testing.T) {
	n := newNode(t)
	first := n.cmd
	n.launch()
	second := n.cmd
	n.cmd = first
	if err := second.Wait(); err == nil {
		t.Error("the second daemon ended without an error")
	}
	if !strings.Contains(n.log(), fmt.Sprintf("another criserver (pid %d) uses the state directory", first.Process.Pid)) {
		t.Errorf("log:\n%s", n.log())
	}
	n.await() // the first one goes on
}

// TestChurnUnderKills kills the daemon at random moments while pods come and go, then removes all pods: nothing may be
// left, which the node checks when the test ends. CRISERVER_E2E_KILLS sets the number of kills.
func TestChurnUnderKills(t *testing.T) {
	kills := 200
	if s := os.Getenv("CRISERVER_E2E_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	const seed = 20260726
	t.Logf("seed %d, %d kills", seed, kills)
	rng := rand.New(rand.NewPCG(seed, seed))
	n := newNode(t)
	n.pull(busyboxImage)
	ctx, cancel := context.WithCancel(context.Background())
	var workers sync.WaitGroup
	done := make([]int, 3)
	for w := range done {
		worker := rand.New(rand.NewPCG(seed, uint64(w)))
		workers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				// The last round is not cut off: what goes on in the daemon after its caller left would come to light
				// only after the test has removed all pods.
				if n.churn(context.WithoutCancel(ctx), fmt.Sprintf("churn-%d-%d", w, i), worker) {
					done[w]++
				}
			}
		})
	}
	for range kills {
		time.Sleep(time.Duration(rng.IntN(120)) * time.Millisecond)
		n.kill()
		n.launch()
		// Every fourth time the next daemon is not left in peace until it serves either.
		if rng.IntN(4) > 0 {
			n.await()
		}
	}
	n.await()
	cancel()
	workers.Wait()
	if total := done[0] + done[1] + done[2]; total < 20 {
		t.Errorf("only %d pods lived through: the test did not test much", total)
	} else {
		t.Logf("%d pods lived from start to removal", total)
	}
}

// churn takes a pod with a container through its life, repeating each call until it succeeds as the kubelet does; it tells
// whether that was so.
func (n *node) churn(ctx context.Context, name string, rng *rand.Rand) bool {
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "churn", Uid: name},
		Hostname:     name,
		LogDirectory: n.dir + "/logs/" + name,
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: int32(20000 + rng.IntN(20000))}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode(rng.IntN(2))}, // POD or CONTAINER
		}},
	}
	c := shell("c", "sleep 0.02; exit 3")
	c.Linux.SecurityContext.NamespaceOptions.Pid = pod.Linux.SecurityContext.NamespaceOptions.Pid
	var podID, id string
	steps := []func() error{
		func() error {
			r, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
			podID = r.GetPodSandboxId()
			return err
		},
		func() error {
			r, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: c, SandboxConfig: pod})
			id = r.GetContainerId()
			return err
		},
		func() error {
			_, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			if status.Code(err) == codes.FailedPrecondition {
				return nil // an earlier call has started it
			}
			return err
		},
		func() error {
			_, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1})
			return err
		},
		func() error {
			_, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID})
			return err
		},
		func() error {
			_, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID})
			return err
		},
	}
	for _, step := range steps {
		var err error
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
			if err = step(); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			n.t.Logf("%s: %v", name, err)
			return false
		}
	}
	return true
}
