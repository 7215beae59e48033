package cri

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/checkpoint"
)

func (s *runtimeService) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	config, err := decodeContainer(r.GetConfig())
	if err != nil {
		return nil, err
	}
	if err := s.b.checkImage("image", r.GetConfig().GetImage()); err != nil {
		return nil, err
	}
	img, dir, err := s.b.Checkpoints.Find(ctx, r.GetConfig().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	if dir != "" {
		config.Checkpoint = string(dir)
		defer func() { dropCheckpoint(ctx, dir) }()
	}
	if img.Artifact {
		return nil, invalid("image", "%s is an artifact: it has files to be mounted, no root file system", r.GetConfig().GetImage().GetImage())
	}
	if config.Volumes, err = decodeVolumes(ctx, r.GetConfig().GetMounts(), s.b); err != nil {
		return nil, err
	}
	id, err := s.b.Containers.CreateContainer(ctx, r.GetPodSandboxId(), config, containerImage(img))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// dropCheckpoint removes a checkpoint that nobody has taken. The creation of the container goes on without a caller who has gone, and
// may take it yet.
func dropCheckpoint(ctx context.Context, dir checkpoint.Dir) {
	remove := func() {
		if err := dir.Remove(); err != nil {
			logrus.WithError(err).Warn("a checkpoint that is not used stays on the disk until the next start")
		}
	}
	if ctx.Err() != nil {
		time.AfterFunc(sandbox.CreateContainerLimit, remove)
		return
	}
	remove()
}

func (s *runtimeService) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := s.b.Containers.StartContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (s *runtimeService) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := s.b.Containers.StopContainer(ctx, r.GetContainerId(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (s *runtimeService) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := s.b.Containers.RemoveContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *runtimeService) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if r.GetWindows() != nil {
		return nil, unsupported("windows", "a Windows container")
	}
	if r.GetLinux() == nil {
		return nil, invalid("linux", "missing")
	}
	if err := s.b.Containers.UpdateContainer(ctx, r.GetContainerId(), decodeResources(r.GetLinux())); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (s *runtimeService) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.listContainers(r.GetFilter())}, nil
}

func (s *runtimeService) listContainers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	containers := s.b.Containers.Containers()
	newestFirst(containers, func(c sandbox.ContainerStatus) (int64, string) { return c.CreatedAt.UnixNano(), c.ID })
	items := make([]*runtimeapi.Container, 0, len(containers))
	for _, c := range containers {
		if c.Phase == sandbox.ContainerCreating {
			continue // it has not been given to anybody yet
		}
		item := encodeContainer(c)
		if matchID(f.GetId(), item.Id) && matchID(f.GetPodSandboxId(), item.PodSandboxId) &&
			matchLabels(f.GetLabelSelector(), item.Labels) &&
			(f.GetState() == nil || f.GetState().State == item.State) {
			items = append(items, item)
		}
	}
	return items
}

func (s *runtimeService) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.b.Containers.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: encodeContainerStatus(c)}
	if r.GetVerbose() {
		resp.Info = verbose(containerInfo(c))
	}
	return resp, nil
}

func (s *runtimeService) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if r.GetTimeout() < 0 {
		return nil, invalid("timeout", "%d is negative", r.GetTimeout())
	}
	result, err := s.b.Commands.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), seconds(r.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: result.Stdout, Stderr: result.Stderr, ExitCode: int32(result.ExitCode)}, nil
}

func (s *runtimeService) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := s.b.Commands.ReopenLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
