package cni

import (
	"errors"
	"testing"
)

// What no network can do is refused whatever the network is, and known as such.
func TestValidate(t *testing.T) {
	if err := (Pod{ID: "p", Annotations: map[string]string{ingressAnnotation: "1M", egressAnnotation: "2M"}}).validate(); err != nil {
		t.Error(err)
	}
	for name, p := range map[string]Pod{
		"no id":    {},
		"argument": {ID: "p", Name: "a;b"},
		"port":     {ID: "p", Ports: []PortMapping{{HostPort: 65536, ContainerPort: 1}}},
		"protocol": {ID: "p", Ports: []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}}},
		"host ip":  {ID: "p", Ports: []PortMapping{{HostPort: 1, ContainerPort: 1, HostIP: "localhost"}}},
		"ingress":  {ID: "p", Annotations: map[string]string{ingressAnnotation: "fast"}},
		"egress":   {ID: "p", Annotations: map[string]string{egressAnnotation: "1"}},
	} {
		if err := p.validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}
