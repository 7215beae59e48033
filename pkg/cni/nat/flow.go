package nat

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows removes the tracked connections of UDP host ports. The kernel translates all packets of a known UDP flow
// as its first one, so a client that goes on sending would stay with the former pod, or with none.
func forgetFlows(ports []Port) error {
	var local []net.IP
	for _, p := range ports {
		if p.Protocol != unix.IPPROTO_UDP {
			continue
		}
		if p.HostIP.IsUnspecified() && local == nil {
			var err error
			if local, err = localAddresses(); err != nil {
				return err
			}
		}
		family := netlink.InetFamily(unix.AF_INET)
		if p.Target.Is6() {
			family = unix.AF_INET6
		}
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flowsOf{p, local})
		// A kernel without nf_conntrack_netlink does not answer for the table; the flows then end by their timeout.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget flows of udp host port %d: %w", p.HostPort, err)
		}
	}
	return nil
}

// flowsOf matches the flows that a host port is for: to the port of the node's address, or of any of them, which are
// local. Others to a port of that number are none of its business, such as those of pods to DNS servers elsewhere.
type flowsOf struct {
	Port
	local []net.IP
}

// MatchConntrackFlow makes it a netlink.CustomConntrackFilter.
func (f flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to := flow.Forward
	if to.Protocol != f.Protocol || to.DstPort != f.HostPort {
		return false
	}
	if !f.HostIP.IsUnspecified() {
		return to.DstIP.Equal(f.HostIP.AsSlice())
	}
	// What the pod has answered counts even if the node has lost the address since.
	if flow.Reverse.SrcIP.Equal(f.Target.AsSlice()) || to.DstIP.IsLoopback() {
		return true
	}
	for _, ip := range f.local {
		if to.DstIP.Equal(ip) {
			return true
		}
	}
	return false
}

func localAddresses() ([]net.IP, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	out := make([]net.IP, 0, len(list))
	for _, a := range list {
		out = append(out, a.IP)
	}
	return out, nil
}
