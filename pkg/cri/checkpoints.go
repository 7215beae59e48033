package cri

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/checkpoints"
)

func (s *runtimeService) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if r.GetTimeout() < 0 {
		return nil, invalid("timeout", "%d is negative", r.GetTimeout())
	}
	if err := s.b.Checkpoints.CheckpointContainer(ctx, r.GetContainerId(), r.GetLocation(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

func (s *runtimeService) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	err := s.b.Checkpoints.CheckpointPod(ctx, r.GetPodSandboxId(), r.GetOutputPath(), r.GetContainerIds(), r.GetOptions())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointPodResponse{}, nil
}

func (s *runtimeService) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	pod, err := decodePod(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	var containers []checkpoints.PodContainer
	for i, config := range r.GetContainerConfigs() {
		c, err := s.decodeRestored(ctx, config)
		if err != nil {
			return nil, fmt.Errorf("container_configs[%d]: %w", i, err)
		}
		containers = append(containers, c)
	}
	podID, ids, err := s.b.Checkpoints.RestorePod(ctx, r.GetCheckpointPath(), pod, containers, r.GetOptions())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.RestorePodResponse{PodSandboxId: podID}
	for i, id := range ids {
		resp.RestoredContainers = append(resp.RestoredContainers,
			&runtimeapi.RestoredContainer{Name: containers[i].Config.Name, ContainerId: id})
	}
	return resp, nil
}

func (s *runtimeService) decodeRestored(ctx context.Context, config *runtimeapi.ContainerConfig) (checkpoints.PodContainer, error) {
	var out checkpoints.PodContainer
	var err error
	if out.Config, err = decodeContainer(config); err != nil {
		return out, err
	}
	if err := s.b.checkImage("image", config.GetImage()); err != nil {
		return out, err
	}
	img, err := s.b.Images.Ready(ctx, config.GetImage().GetImage())
	if err != nil {
		return out, err
	}
	out.Image = containerImage(img)
	out.Config.Volumes, err = decodeVolumes(ctx, config.GetMounts(), s.b)
	return out, err
}
