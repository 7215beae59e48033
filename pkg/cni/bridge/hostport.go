package bridge

import (
	"fmt"
	"net/netip"
	"strings"

	"criserver/pkg/cni/nat"
)

// HostPort is a port of the node that leads to one of the pod.
type HostPort struct {
	// Protocol is tcp, udp or sctp; upper case is the same.
	Protocol                string
	HostPort, ContainerPort uint16
	// HostIP is the node's address that the port is for; "" is all of them, of both families.
	HostIP string
}

// String shows a host port as in "tcp 127.0.0.1:80".
func (h HostPort) String() string {
	host := h.HostIP
	if host == "" {
		host = "*"
	}
	return fmt.Sprintf("%s %s:%d", strings.ToLower(h.Protocol), host, h.HostPort)
}

// resolve makes a host port's translations to those of the pod's addresses that it applies to.
func (h HostPort) resolve(addresses []netip.Addr) ([]nat.Port, error) {
	protocol, ok := protocols[strings.ToLower(h.Protocol)]
	if !ok {
		return nil, fmt.Errorf("host port %s: unknown protocol %q", h, h.Protocol)
	}
	if h.HostPort == 0 || h.ContainerPort == 0 {
		return nil, fmt.Errorf("host port %s: the ports must not be 0", h)
	}
	var hostIP netip.Addr
	if h.HostIP != "" {
		var err error
		if hostIP, err = netip.ParseAddr(h.HostIP); err != nil || hostIP.Zone() != "" {
			return nil, fmt.Errorf("host port %s: invalid host address %q", h, h.HostIP)
		}
		hostIP = hostIP.Unmap()
	}
	var out []nat.Port
	for _, a := range addresses {
		p := nat.Port{Protocol: protocol, HostIP: hostIP, HostPort: h.HostPort, Target: a, TargetPort: h.ContainerPort}
		switch {
		case !hostIP.IsValid() && a.Is4():
			p.HostIP = netip.IPv4Unspecified()
		case !hostIP.IsValid():
			p.HostIP = netip.IPv6Unspecified()
		case hostIP.Is4() != a.Is4():
			continue
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("host port %s: the pod has no address of that family", h)
	}
	return out, nil
}
