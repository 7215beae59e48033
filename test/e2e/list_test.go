package e2e

import (
	"errors"
	"io"
	"slices"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStreamedLists has what runs told as a list and as a stream; that a stream has several messages, tests of pkg/cri see.
func TestStreamedLists(t *testing.T) {
	n := newNode(t)
	var pods, containers []string
	for range 3 {
		pod := n.podConfig()
		podID := n.runPod(pod)
		pods = append(pods, podID)
		containers = append(containers, n.run(podID, pod, shell("c", "sleep 1000")))
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: containers[2]}); err != nil {
		t.Fatal(err)
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	for name, row := range map[string]struct {
		pods       *runtimeapi.PodSandboxFilter
		containers *runtimeapi.ContainerFilter
		want       [2][]string
	}{
		"all":     {nil, nil, [2][]string{pods, containers}},
		"one pod": {&runtimeapi.PodSandboxFilter{Id: pods[1]}, &runtimeapi.ContainerFilter{PodSandboxId: pods[1]}, [2][]string{pods[1:2], containers[1:2]}},
		"running": {nil, &runtimeapi.ContainerFilter{State: running}, [2][]string{pods, containers[:2]}},
	} {
		podStream, err := n.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: row.pods})
		got := streamed(t, podStream, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, (*runtimeapi.PodSandbox).GetId)
		if !slices.Equal(got, sorted(row.want[0])) {
			t.Errorf("%s: pods %v, want %v", name, got, row.want[0])
		}
		stream, err := n.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: row.containers})
		got = streamed(t, stream, err, (*runtimeapi.StreamContainersResponse).GetContainers, (*runtimeapi.Container).GetId)
		if !slices.Equal(got, sorted(row.want[1])) {
			t.Errorf("%s: containers %v, want %v", name, got, row.want[1])
		}
	}
	stream, err := n.images.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{})
	if got := streamed(t, stream, err, (*runtimeapi.StreamImagesResponse).GetImages, (*runtimeapi.Image).GetId); len(got) != 1 {
		t.Errorf("images %v", got)
	}
}

func sorted(ids []string) []string { return slices.Sorted(slices.Values(ids)) }

// streamed are the IDs of a streamed list, sorted.
func streamed[R, T any](t *testing.T, stream grpc.ServerStreamingClient[R], err error, items func(*R) []T, id func(T) string) []string {
	t.Helper()
	var ids []string
	for err == nil {
		var r *R
		if r, err = stream.Recv(); err == nil {
			for _, item := range items(r) {
				ids = append(ids, id(item))
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return sorted(ids)
}
