package nat

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestFlowsOfAHostPort(t *testing.T) {
	const node, other, world, pod = "192.0.2.1", "192.0.2.9", "203.0.113.53", "10.88.0.7"
	flow := func(protocol uint8, to string, port uint16, answersFrom string) *netlink.ConntrackFlow {
		return &netlink.ConntrackFlow{
			Forward: netlink.IPTuple{Protocol: protocol, DstIP: net.ParseIP(to), DstPort: port},
			Reverse: netlink.IPTuple{Protocol: protocol, SrcIP: net.ParseIP(answersFrom)},
		}
	}
	any4 := Port{Protocol: unix.IPPROTO_UDP, HostIP: netip.IPv4Unspecified(), HostPort: 53, Target: netip.MustParseAddr(pod), TargetPort: 5353}
	one := any4
	one.HostIP = netip.MustParseAddr(node)
	local := []net.IP{net.ParseIP(node), net.ParseIP(other)}
	for name, row := range map[string]struct {
		flow     *netlink.ConntrackFlow
		any, one bool
	}{
		"to the node":               {flow(unix.IPPROTO_UDP, node, 53, node), true, true},
		"to the node, translated":   {flow(unix.IPPROTO_UDP, node, 53, pod), true, true},
		"to another address of it":  {flow(unix.IPPROTO_UDP, other, 53, other), true, false},
		"to the loopback":           {flow(unix.IPPROTO_UDP, "127.0.0.1", 53, pod), true, false},
		"to an address that it had": {flow(unix.IPPROTO_UDP, "192.0.2.77", 53, pod), true, false},
		"to a DNS server elsewhere": {flow(unix.IPPROTO_UDP, world, 53, world), false, false},
		"to another port":           {flow(unix.IPPROTO_UDP, node, 54, node), false, false},
		"by TCP":                    {flow(unix.IPPROTO_TCP, node, 53, node), false, false},
	} {
		if got := (flowsOf{any4, local}).MatchConntrackFlow(row.flow); got != row.any {
			t.Errorf("%s, port of any address: %v", name, got)
		}
		if got := (flowsOf{one, nil}).MatchConntrackFlow(row.flow); got != row.one {
			t.Errorf("%s, port of one address: %v", name, got)
		}
	}
}
