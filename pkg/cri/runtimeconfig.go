package cri

import (
	"context"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateRuntimeConfig takes the addresses for pods, which are all that the kubelet tells by it; without any it changes nothing.
func (s *runtimeService) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	cidrs, err := decodePodCIDRs(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	if err == nil && len(cidrs) > 0 {
		err = s.b.SetPodCIDRs(ctx, cidrs)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// decodePodCIDRs reads a range, or one of each family with a comma between (api.proto, NetworkConfig).
func decodePodCIDRs(s string) ([]netip.Prefix, error) {
	if s == "" {
		return nil, nil
	}
	const field = "runtime_config.network_config.pod_cidr"
	var out []netip.Prefix
	for _, part := range strings.Split(s, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, invalid(field, "%q is not a range such as 10.244.1.0/24", part)
		}
		out = append(out, p.Masked()) // as Kubernetes reads it: an address and the length of its network
	}
	return out, nil
}
