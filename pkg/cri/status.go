package cri

import (
	"context"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/handler"
)

// runtimeName is what the kubelet shows as the node's container runtime.
const runtimeName = "criserver"

func (s *runtimeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           "0.1.0", // of the kubelet's runtime API before the CRI had versions; every runtime says this
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.b.Version,
		RuntimeApiVersion: "v1",
	}, nil
}

func (s *runtimeService) Status(_ context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	handlers := s.b.Handlers()
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", s.b.RuntimeReady()),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", s.b.NetworkReady()),
		}},
		RuntimeHandlers: encodeHandlers(handlers),
		Features: &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy: true, MountOptions: true,
			UserNamespacesHostNetwork: slices.ContainsFunc(handlers, func(h handler.Usable) bool { return h.Features.UsersOnHostNetwork }),
		},
	}
	if r.GetVerbose() && s.b.Info != nil {
		resp.Info = s.b.Info()
		_, err := s.b.Checkpoints.FindCRIU()
		resp.Info["checkpoints"] = verbose(checkpointInfo(handlers, err))["info"]
	}
	return resp, nil
}

// checkpointInfo tells which handlers make and restore checkpoints, for which the status has no field. Without criu none does.
func checkpointInfo(handlers []handler.Usable, noCRIU error) any {
	info := struct {
		Handlers map[string]bool `json:"handlers"`
		Reason   string          `json:"reason,omitempty"`
	}{Handlers: map[string]bool{}}
	for _, h := range handlers {
		info.Handlers[h.Name] = h.Features.Checkpoints && noCRIU == nil
	}
	if noCRIU != nil {
		info.Reason = noCRIU.Error()
	}
	return info
}

func encodeHandlers(handlers []handler.Usable) []*runtimeapi.RuntimeHandler {
	out := make([]*runtimeapi.RuntimeHandler, 0, len(handlers))
	for _, h := range handlers {
		out = append(out, &runtimeapi.RuntimeHandler{Name: h.Name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: h.Features.RecursiveReadOnlyMounts,
			UserNamespaces:          h.Features.UserNamespaces,
		}})
	}
	return out
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	if err != nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Status: false, Reason: reason, Message: err.Error()}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
}

func (s *runtimeService) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	kind := runtimeapi.CgroupDriver_CGROUPFS
	if s.b.CgroupDriver == driver.Systemd {
		kind = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: kind}}, nil
}
