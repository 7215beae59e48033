package e2e

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRestorePodKilled kills the daemon at several moments of a pod's restore: whatever there was is gone after a restart, and a
// retry makes the pod, whether it comes at once or later.
func TestRestorePodKilled(t *testing.T) {
	needCRIU(t)
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	leads, follows, ids := n.partners(pod, podID)
	output := t.TempDir()
	if err := n.checkpointPod(&runtimeapi.CheckpointPodRequest{PodSandboxId: podID, OutputPath: output, ContainerIds: ids}); err != nil {
		t.Fatalf("%v\n%s", err, n.log())
	}
	restore := func(config *runtimeapi.PodSandboxConfig) (*runtimeapi.RestorePodResponse, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		return n.RestorePod(ctx, &runtimeapi.RestorePodRequest{
			CheckpointPath: output, Config: config, ContainerConfigs: []*runtimeapi.ContainerConfig{leads, follows},
		})
	}
	staged := func() int {
		dirs, _ := filepath.Glob(filepath.Join(n.dir, "root/checkpoints/*"))
		return len(dirs)
	}
	for name, moment := range map[string]func(pods, containers int) bool{
		"before the pod":            func(int, int) bool { return true },
		"when the pod is there":     func(pods, _ int) bool { return pods > 1 },
		"with a copy of checkpoint": func(pods, _ int) bool { return pods > 1 && staged() > 0 },
		"with one container":        func(_, containers int) bool { return containers > 2 },
		"with two containers":       func(_, containers int) bool { return containers > 3 },
	} {
		n.sub(name, func(t *testing.T) {
			config := n.podConfig()
			result := make(chan error, 1)
			go func() {
				_, err := restore(config)
				result <- err
			}()
			over := killRestore(t, n, moment, result)
			n.start()
			if over || name == "with one container" { // the retry comes before the removal, or in the middle of it
				n.checkRestoredPod(t, config, restore)
				return
			}
			eventually(t, "what was not finished is removed", func() bool {
				pods, containers := n.count()
				return pods == 1 && containers == 2
			})
			eventually(t, "its checkpoints are removed", func() bool { return staged() == 0 })
			n.checkRestoredPod(t, config, restore)
		})
	}
	if list, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); err != nil || len(list.Containers) != 2 {
		t.Errorf("containers: %v, %v", list, err)
	}
}

// killRestore kills the daemon at a moment of a restore, and tells whether that was over by then.
func killRestore(t *testing.T, n *node, moment func(pods, containers int) bool, result chan error) (over bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !moment(n.count()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the moment does not come\n%s", n.log())
		}
	}
	n.kill()
	return <-result == nil
}

// count tells how many pods and containers there are.
func (n *node) count() (pods, containers int) {
	n.t.Helper()
	p, err := n.ListPodSandbox(n.t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	c, err := n.ListContainers(n.t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return len(p.Items), len(c.Containers)
}

// checkRestoredPod restores a pod and starts its containers. A call again has the same result until one is started.
func (n *node) checkRestoredPod(t *testing.T, config *runtimeapi.PodSandboxConfig,
	restore func(*runtimeapi.PodSandboxConfig) (*runtimeapi.RestorePodResponse, error)) {
	t.Helper()
	resp, err := restore(config)
	if err != nil {
		t.Fatalf("retry: %v\n%s", err, n.log())
	}
	n.kill()
	n.start()
	again, err := restore(config)
	if err != nil || again.PodSandboxId != resp.PodSandboxId || len(again.RestoredContainers) != 2 ||
		again.RestoredContainers[1].ContainerId != resp.RestoredContainers[1].ContainerId {
		t.Errorf("again: %v, %v; want %v", again, err, resp)
	}
	for _, c := range resp.RestoredContainers {
		if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			t.Fatalf("start: %v\n%s", err, n.log())
		}
		n.counts(c.ContainerId)
	}
	if _, err := restore(config); status.Code(err) != codes.AlreadyExists {
		t.Errorf("once it runs: %v", err)
	}
	n.remove(resp.PodSandboxId)
}
