package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/spec"
)

func (s *runtimeService) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	config, err := decodePod(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	id, err := s.b.Pods.RunPod(ctx, config)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (s *runtimeService) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := s.b.Pods.StopPod(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (s *runtimeService) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := s.b.Pods.RemovePod(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	var overhead, resources *spec.Resources
	if r.GetOverhead() != nil {
		overhead = new(decodeResources(r.GetOverhead()))
	}
	if r.GetResources() != nil {
		resources = new(decodeResources(r.GetResources()))
	}
	if err := s.b.Pods.UpdatePod(ctx, r.GetPodSandboxId(), overhead, resources); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

func (s *runtimeService) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	p, err := s.b.Pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: encodePodStatus(p)}
	if r.GetVerbose() {
		resp.Info = verbose(p)
	}
	return resp, nil
}

func (s *runtimeService) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.listPods(r.GetFilter())}, nil
}

func (s *runtimeService) listPods(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	pods := s.b.Pods.Pods()
	newestFirst(pods, func(p sandbox.PodStatus) (int64, string) { return p.CreatedAt.UnixNano(), p.ID })
	items := make([]*runtimeapi.PodSandbox, 0, len(pods))
	for _, p := range pods {
		if p.Phase == sandbox.PodCreating {
			continue // it has not been given to anybody yet
		}
		item := encodePod(p)
		if matchID(f.GetId(), item.Id) && matchLabels(f.GetLabelSelector(), item.Labels) &&
			(f.GetState() == nil || f.GetState().State == item.State) {
			items = append(items, item)
		}
	}
	return items
}
