package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A message of a streamed list has so many items at most, some 100 KiB of common ones, and no more bytes than a client takes whatever
// labels and annotations they have: gRPC's default is 4 MiB.
const (
	maxItems     = 200
	maxItemBytes = 1 << 20
)

// streamList sends a list in messages of one item at least.
func streamList[T proto.Message](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n, bytes := 1, proto.Size(items[0])
		for ; n < len(items) && n < maxItems; n++ {
			if bytes += proto.Size(items[n]); bytes > maxItemBytes {
				break
			}
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

func (s *runtimeService) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return streamList(s.listPods(r.GetFilter()), func(pods []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: pods})
	})
}

func (s *runtimeService) StreamContainers(r *runtimeapi.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return streamList(s.listContainers(r.GetFilter()), func(containers []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: containers})
	})
}

func (s *imageService) StreamImages(r *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.listImages(r.GetFilter())
	if err != nil {
		return err
	}
	return streamList(images, func(images []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: images})
	})
}
