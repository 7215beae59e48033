package cni

import (
	"fmt"
	"math"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"criserver/pkg/cni/rate"
)

const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"

	portMappingsCapability = "portMappings"
	bandwidthCapability    = "bandwidth"

	// unlimitedBurst is how much may exceed a rate at once, in bits. Kubernetes has no setting for it.
	unlimitedBurst = math.MaxInt32
)

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

type bandwidth struct {
	IngressRate  int64 `json:"ingressRate,omitempty"`
	IngressBurst int64 `json:"ingressBurst,omitempty"`
	EgressRate   int64 `json:"egressRate,omitempty"`
	EgressBurst  int64 `json:"egressBurst,omitempty"`
}

type dns struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// capabilities are the capability arguments (CNI CONVENTIONS.md) that a plugin of the list declares and the pod has.
func capabilities(list *libcni.NetworkConfigList, p Pod) (map[string]any, error) {
	wanted := map[string]bool{}
	for _, plugin := range list.Plugins {
		for name, on := range plugin.Network.Capabilities {
			wanted[name] = wanted[name] || on
		}
	}
	out := map[string]any{}
	if wanted[portMappingsCapability] {
		if m := portMappings(p.Ports); len(m) > 0 {
			out[portMappingsCapability] = m
		}
	}
	if wanted[bandwidthCapability] {
		b, err := bandwidthOf(p.Annotations)
		if err != nil {
			return nil, err
		}
		if b != (bandwidth{}) {
			out[bandwidthCapability] = b
		}
	}
	if d := p.DNS; wanted["dns"] && len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		out["dns"] = dns(d)
	}
	if wanted["io.kubernetes.cri.pod-annotations"] && len(p.Annotations) > 0 {
		out["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	if wanted["cgroupPath"] && p.CgroupParent != "" {
		out["cgroupPath"] = p.CgroupParent
	}
	return out, nil
}

func portMappings(ports []PortMapping) []portMapping {
	var out []portMapping
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		protocol := strings.ToLower(p.Protocol)
		if protocol == "" {
			protocol = "tcp"
		}
		out = append(out, portMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: protocol, HostIP: p.HostIP})
	}
	return out
}

func bandwidthOf(annotations map[string]string) (b bandwidth, err error) {
	if v, ok := annotations[ingressAnnotation]; ok {
		if b.IngressRate, err = rate.Parse(v); err != nil {
			return b, fmt.Errorf("annotation %s: %w", ingressAnnotation, err)
		}
		b.IngressBurst = unlimitedBurst
	}
	if v, ok := annotations[egressAnnotation]; ok {
		if b.EgressRate, err = rate.Parse(v); err != nil {
			return b, fmt.Errorf("annotation %s: %w", egressAnnotation, err)
		}
		b.EgressBurst = unlimitedBurst
	}
	return b, nil
}
