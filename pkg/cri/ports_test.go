package cri

import (
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/cni"
)

func TestPorts(t *testing.T) {
	got, err := decodePorts([]*runtimeapi.PortMapping{
		{ContainerPort: 80, HostPort: 8080},
		{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "127.0.0.1"},
		{Protocol: runtimeapi.Protocol_SCTP, ContainerPort: 65535, HostPort: 65535, HostIp: "fd00::1"},
		{ContainerPort: 443},
	})
	want := []cni.PortMapping{
		{Protocol: "tcp", ContainerPort: 80, HostPort: 8080},
		{Protocol: "udp", ContainerPort: 53, HostPort: 5353, HostIP: "127.0.0.1"},
		{Protocol: "sctp", ContainerPort: 65535, HostPort: 65535, HostIP: "fd00::1"},
		{Protocol: "tcp", ContainerPort: 443},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for names, wrong := range map[string]*runtimeapi.PortMapping{
		"port_mappings.protocol":         {Protocol: 3},
		"port 65536 or 1 is not in":      {HostPort: 65536, ContainerPort: 1},
		"port 1 or 65536 is not in":      {HostPort: 1, ContainerPort: 65536},
		"port -1 or 1 is not in 0..6553": {HostPort: -1, ContainerPort: 1},
		"port 1 or -1 is not in 0..6553": {HostPort: 1, ContainerPort: -1},
	} {
		if _, err := decodePorts([]*runtimeapi.PortMapping{wrong}); err == nil || !strings.Contains(err.Error(), names) {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}
