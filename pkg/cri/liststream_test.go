package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/want"
)

// lists are backends that can only list.
type lists struct {
	Pods
	Containers
	Images
	pods       []sandbox.PodStatus
	containers []sandbox.ContainerStatus
	images     []imagesvc.Image
}

type (
	listedPods       struct{ *lists }
	listedContainers struct{ *lists }
	listedImages     struct{ *lists }
)

func (l listedPods) Pods() []sandbox.PodStatus                   { return slices.Clone(l.pods) }
func (l listedContainers) Containers() []sandbox.ContainerStatus { return slices.Clone(l.containers) }
func (l listedImages) List() []imagesvc.Image                    { return slices.Clone(l.images) }

// serveLists serves the edge with the lists on a socket.
func serveLists(t *testing.T, l *lists) *grpc.ClientConn {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(Options()...)
	Register(server, Backends{
		Pods: listedPods{l}, Containers: listedContainers{l}, Images: listedImages{l},
		CheckHandler: func(string) error { return nil },
	})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// collect reads a stream to its end, and tells how many messages it had.
func collect[R, T any](t *testing.T, stream grpc.ServerStreamingClient[R], err error, items func(*R) []T) (all []T, messages int) {
	t.Helper()
	for err == nil {
		var r *R
		if r, err = stream.Recv(); err == nil {
			if len(items(r)) == 0 {
				t.Error("a message has no item")
			}
			all, messages = append(all, items(r)...), messages+1
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return all, messages
}

// checkStream compares what a stream has sent with the answer of the list call: all items once, in order.
func checkStream[T proto.Message](t *testing.T, what string, got []T, messages int, want []T, more bool) {
	t.Helper()
	if !slices.EqualFunc(got, want, func(a, b T) bool { return proto.Equal(a, b) }) {
		t.Errorf("%s: %d items are not those of the list, which are %d", what, len(got), len(want))
	}
	if more != (messages > 1) {
		t.Errorf("%s: %d items came in %d messages", what, len(got), messages)
	}
}

func many() *lists {
	l := &lists{}
	for i := range 2*maxItems + 7 {
		id, parity := fmt.Sprintf("%05d", i), map[string]string{"even": fmt.Sprint(i%2 == 0)}
		state := sandbox.PodReady
		phase := sandbox.ContainerRunning
		if i%4 == 0 {
			state, phase = sandbox.PodStopped, sandbox.ContainerExited
		}
		created := time.Unix(int64(i), 0)
		l.pods = append(l.pods, sandbox.PodStatus{ID: "p" + id, Phase: state, CreatedAt: created, Config: want.Pod{Name: id, Labels: parity}})
		l.containers = append(l.containers, sandbox.ContainerStatus{ID: "c" + id, PodID: "p" + id, Phase: phase, CreatedAt: created,
			Config: want.Container{Name: id, Labels: parity}})
		l.images = append(l.images, imagesvc.Image{Tags: []string{"registry.example/image:" + id}})
	}
	return l
}

func TestStreamedLists(t *testing.T) {
	l := many()
	conn := serveLists(t, l)
	runtimes, images := runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	even := map[string]string{"even": "true"}
	for name, f := range map[string]struct {
		pods       *runtimeapi.PodSandboxFilter
		containers *runtimeapi.ContainerFilter
		items      int
	}{
		"all":    {nil, nil, len(l.pods)},
		"labels": {&runtimeapi.PodSandboxFilter{LabelSelector: even}, &runtimeapi.ContainerFilter{LabelSelector: even}, len(l.pods)/2 + 1},
		"one":    {&runtimeapi.PodSandboxFilter{Id: "p00003"}, &runtimeapi.ContainerFilter{PodSandboxId: "p00003"}, 1},
		"none":   {&runtimeapi.PodSandboxFilter{Id: "x"}, &runtimeapi.ContainerFilter{Id: "x"}, 0},
		"state": {&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}},
			&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}},
			len(l.pods)/4 + 1},
	} {
		ctx := t.Context()
		pods, err := runtimes.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: f.pods})
		if err != nil || len(pods.Items) != f.items {
			t.Errorf("%s: %d pods, %v; want %d", name, len(pods.GetItems()), err, f.items)
		}
		podStream, err := runtimes.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: f.pods})
		got, messages := collect(t, podStream, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes)
		checkStream(t, "pods: "+name, got, messages, pods.GetItems(), f.items > maxItems)

		containers, err := runtimes.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: f.containers})
		if err != nil || len(containers.Containers) != f.items {
			t.Errorf("%s: %d containers, %v; want %d", name, len(containers.GetContainers()), err, f.items)
		}
		containerStream, err := runtimes.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: f.containers})
		gotContainers, messages := collect(t, containerStream, err, (*runtimeapi.StreamContainersResponse).GetContainers)
		checkStream(t, "containers: "+name, gotContainers, messages, containers.GetContainers(), f.items > maxItems)
	}
	all, err := images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(all.Images) != len(l.images) {
		t.Errorf("%d images, %v", len(all.GetImages()), err)
	}
	stream, err := images.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{})
	got, messages := collect(t, stream, err, (*runtimeapi.StreamImagesResponse).GetImages)
	checkStream(t, "images", got, messages, all.GetImages(), true)
}

// TestStreamOfLargeItems has pods with as many annotations as Kubernetes allows: a list of them is too large for a client with gRPC's
// defaults.
func TestStreamOfLargeItems(t *testing.T) {
	l := many()
	for i := range l.pods[:40] {
		l.pods[i].Config.Annotations = map[string]string{"large": strings.Repeat("a", 256<<10)}
	}
	client := runtimeapi.NewRuntimeServiceClient(serveLists(t, l))
	if _, err := client.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err == nil {
		t.Error("the list is small")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := client.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
	got, messages := collect(t, stream, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes)
	if len(got) != len(l.pods) || messages < 10 {
		t.Errorf("%d pods in %d messages", len(got), messages)
	}
}
