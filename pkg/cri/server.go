// Package cri is the gRPC edge: it answers CRI v1 (k8s.io/cri-api) by decoding a request into values of the packages
// below, calling them, and encoding the result. It keeps no state. What every call needs, logging, error codes, panic
// recovery, is done once, by interceptors.
package cri

import (
	"context"
	"net/netip"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/checkpoints"
	"criserver/pkg/cri/streaming"
	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

// MaxMessage is the largest gRPC message in bytes, either way. The kubelet's client accepts 16 MiB; a list of very many
// containers may be longer for clients that accept more.
const MaxMessage = 80 << 20

// Pods runs pods; see sandbox.Service for the contracts.
type Pods interface {
	RunPod(ctx context.Context, c want.Pod) (string, error)
	StopPod(ctx context.Context, id string) error
	RemovePod(ctx context.Context, id string) error
	UpdatePod(ctx context.Context, id string, overhead, resources *spec.Resources) error
	Pod(id string) (sandbox.PodStatus, error)
	Pods() []sandbox.PodStatus
}

// Containers runs containers; see sandbox.Service for the contracts.
type Containers interface {
	CreateContainer(ctx context.Context, podID string, c want.Container, img want.Image) (string, error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	UpdateContainer(ctx context.Context, id string, change spec.Resources) error
	Container(id string) (sandbox.ContainerStatus, error)
	Containers() []sandbox.ContainerStatus
}

// Commands acts on running containers; see sandbox.Service for the contracts.
type Commands interface {
	ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (sandbox.ExecResult, error)
	ReopenLog(ctx context.Context, id string) error
	ExecProcess(id string, command []string, terminal bool) (containerID string, p *specs.Process, err error)
	Attachable(id string) (sandbox.ContainerStatus, error)
	PodNetwork(id string) (path string, err error)
}

// Streams gives out URLs for sessions; see streaming.Client for the contract.
type Streams interface {
	URL(ctx context.Context, op streaming.Operation) (string, error)
}

// Images holds images; see imagesvc.Service for the contracts.
type Images interface {
	Pull(ctx context.Context, ref string, auth registry.Auth) (string, error)
	Resolve(ref string) (imagesvc.Image, error)
	Ready(ctx context.Context, ref string) (imagesvc.Image, error)
	List() []imagesvc.Image
	Remove(ctx context.Context, ref string) error
	FsInfo(ctx context.Context) (imagesvc.FsInfo, error)
	Progress(ref string) []imagesvc.Progress
}

// Checkpoints makes checkpoints, and finds the image of a container and the checkpoint that it is restored from; see
// checkpoints.Service for the contracts.
type Checkpoints interface {
	CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error
	FindCRIU() (string, error)
	Find(ctx context.Context, name string) (imagesvc.Image, checkpoint.Dir, error)
	CheckpointPod(ctx context.Context, podID, output string, containerIDs []string, options map[string]string) error
	RestorePod(ctx context.Context, path string, pod want.Pod, containers []checkpoints.PodContainer, options map[string]string) (string, []string, error)
}

// Backends is what the server calls.
type Backends struct {
	Pods        Pods
	Containers  Containers
	Commands    Commands
	Images      Images
	Streams     Streams
	Checkpoints Checkpoints
	// RuntimeReady and NetworkReady tell why the runtime or the network cannot serve pods, nil if they can.
	RuntimeReady, NetworkReady func() error
	// SetPodCIDRs tells the network which addresses pods are to have; see cni.Network for the contract.
	SetPodCIDRs func(ctx context.Context, cidrs []netip.Prefix) error
	// Handlers lists the runtime handlers that can be used, the default one, named "", first.
	Handlers func() []handler.Usable
	// CheckHandler refuses the name of a runtime handler that is not configured.
	CheckHandler func(name string) error
	// CgroupDriver makes the cgroups; the kubelet must have the same.
	CgroupDriver driver.Kind
	// Version of this program.
	Version string
	// Info is what Status tells in its verbose form, by key.
	Info func() map[string]string
}

// Register adds RuntimeService and ImageService to a gRPC server. RPCs that this version does not have answer
// Unimplemented.
func Register(s *grpc.Server, b Backends) {
	runtimeapi.RegisterRuntimeServiceServer(s, &runtimeService{b: b})
	runtimeapi.RegisterImageServiceServer(s, &imageService{b: b})
}

// Options are the server options that the edge needs.
func Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.ChainUnaryInterceptor(logUnary, mapUnary, recoverUnary),
		grpc.ChainStreamInterceptor(logStream, mapStream, recoverStream),
	}
}

// checkImage refuses an image without a name, or of a runtime handler that is not configured. All handlers have the same images.
func (b Backends) checkImage(field string, spec *runtimeapi.ImageSpec) error {
	if spec.GetImage() == "" {
		return invalid(field, "no image is named")
	}
	if err := b.CheckHandler(spec.GetRuntimeHandler()); err != nil {
		return invalid(field+".runtime_handler", "%v", err)
	}
	return nil
}

type runtimeService struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	b Backends
}

type imageService struct {
	runtimeapi.UnimplementedImageServiceServer
	b Backends
}
