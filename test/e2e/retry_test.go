package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// same calls fn 50 times at once and returns the one ID that all got.
func same(t *testing.T, fn func() (string, error)) string {
	t.Helper()
	const calls = 50
	ids, errs := make([]string, calls), make([]error, calls)
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() { ids[i], errs[i] = fn() })
	}
	wg.Wait()
	for i := range calls {
		if errs[i] != nil || ids[i] == "" || ids[i] != ids[0] {
			t.Fatalf("call %d: %q, %v; the first one got %q", i, ids[i], errs[i], ids[0])
		}
	}
	return ids[0]
}

func (n *node) wantOneOfEach(t *testing.T) {
	t.Helper()
	pods, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != 1 {
		t.Errorf("pods: %v, %v", pods, err)
	}
	containers, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(containers.Containers) != 1 {
		t.Errorf("containers: %v, %v", containers, err)
	}
}

// Calls for the same attempt are one call, whether they come at once or after its end.
func TestSameAttemptIsOne(t *testing.T) {
	n := newNode(t)
	n.pull(busyboxImage)
	pod := n.podConfig()
	runPod := func() (string, error) {
		r, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
		return r.GetPodSandboxId(), err
	}
	podID := same(t, runPod)
	c := shell("c", "while :; do sleep 1; done")
	create := func() (string, error) {
		r, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: c, SandboxConfig: pod})
		return r.GetContainerId(), err
	}
	id := same(t, create)
	if again := same(t, runPod); again != podID {
		t.Errorf("the pod is %s later, and was %s", again, podID)
	}
	if again := same(t, create); again != id {
		t.Errorf("the container is %s later, and was %s", again, id)
	}
	n.wantOneOfEach(t)
	// Another attempt is another container, and a started one is not given to a call that wants one to be started.
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := create(); status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), id) {
		t.Errorf("creation of what runs already: %v", err)
	}
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("second start: %v", err)
	}
	c = shell("c", "true", func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt = 1 })
	if second, err := create(); err != nil || second == id {
		t.Errorf("the next attempt: %s, %v", second, err)
	}
}

// The kubelet gives up at its deadline and calls again: the second call gets what the first one has begun.
func TestRetryJoinsTheCallUnderWay(t *testing.T) {
	n := newNode(t)
	n.pull(busyboxImage)
	pod := n.podConfig()
	runPod := func(limit time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		r, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
		return r.GetPodSandboxId(), err
	}
	gaveUp := 0
	for range 20 {
		if _, err := runPod(time.Millisecond); status.Code(err) == codes.DeadlineExceeded {
			gaveUp++
		}
	}
	podID, err := runPod(time.Minute)
	if err != nil || gaveUp == 0 {
		t.Fatalf("%v after %d calls that gave up", err, gaveUp)
	}
	create := func(limit time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		r, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: shell("c", "true"), SandboxConfig: pod})
		return r.GetContainerId(), err
	}
	gaveUp = 0
	for range 20 {
		if _, err := create(3 * time.Millisecond); status.Code(err) == codes.DeadlineExceeded {
			gaveUp++
		}
	}
	if _, err := create(time.Minute); err != nil || gaveUp == 0 {
		t.Fatalf("%v after %d calls that gave up", err, gaveUp)
	}
	n.wantOneOfEach(t)
}

// What failed has left its name: the same attempt may be tried again as soon as the cause is gone.
func TestNameIsFreeAfterFailure(t *testing.T) {
	n := newNode(t)
	n.pull(busyboxImage)
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "many"}
	})
	_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "linux.sysctls: ") {
		t.Fatalf("a pod with a sysctl that the kernel refuses: %v", err)
	}
	pod.Linux.Sysctls = nil
	podID := n.runPod(pod)
	c := shell("c", "true", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such"} })
	if _, err := n.create(podID, pod, c); err == nil {
		t.Fatal("a container of nothing was created")
	}
	c = shell("c", "exit 5")
	if st := n.awaitExit(n.run(podID, pod, c)); st.ExitCode != 5 {
		t.Errorf("the second try: %v", st)
	}
}

// Stopping and removing lead to a state, and may be repeated in any order.
func TestStopAndRemoveRepeat(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("c", "while :; do sleep 1; done"))
	created, err := n.create(podID, pod, shell("created", "true"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	stop := func(id string) error {
		_, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
		return err
	}
	remove := func(id string) error {
		_, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	}
	stopPod := func(id string) error {
		_, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		return err
	}
	removePod := func(id string) error {
		_, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	}
	for _, unknown := range []string{"nobody", strings.Repeat("0", 64)} {
		for name, call := range map[string]func(string) error{"StopContainer": stop, "RemoveContainer": remove, "StopPodSandbox": stopPod, "RemovePodSandbox": removePod} {
			if err := call(unknown); err != nil {
				t.Errorf("%s of an unknown ID: %v", name, err)
			}
		}
	}
	step := func(name string, call func(string) error, id string) {
		t.Helper()
		for range 2 {
			if err := call(id); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	step("stop of a created container", stop, created)
	step("removal of a running container", remove, id)
	id = n.run(podID, pod, shell("d", "while :; do sleep 1; done"))
	step("stop of a container", stop, id)
	step("stop of a pod", stopPod, podID)
	if st := n.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 || st.FinishedAt == 0 {
		t.Errorf("container of a stopped pod: %v", st)
	}
	if _, err := n.create(podID, pod, shell("late", "true")); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("creation in a stopped pod: %v", err)
	}
	if _, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("run of a stopped attempt: %v", err)
	}
	step("removal of a pod", removePod, podID)
	step("stop of a removed container", stop, id)
	step("stop of a removed pod", stopPod, podID)
	if _, err := n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id}); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed container: %v", err)
	}
	if _, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID}); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed pod: %v", err)
	}
	// Without a stop, and with a network namespace that somebody has taken away.
	podID = n.runPod(n.podConfig())
	n.run(podID, pod, shell("c", "while :; do sleep 1; done"))
	ns, err := filepath.Glob(filepath.Join(n.dir, "state/pods", podID, "ns/net"))
	if err != nil || len(ns) != 1 {
		t.Fatalf("network namespaces: %v, %v", ns, err)
	}
	if err := errors.Join(unix.Unmount(ns[0], unix.MNT_DETACH), os.Remove(ns[0])); err != nil {
		t.Fatal(err)
	}
	step("removal of a running pod without its network namespace", removePod, podID)
}
