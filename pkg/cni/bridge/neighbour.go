package bridge

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

const (
	groupLimit = 5 * time.Second
	groupPause = 200 * time.Microsecond
)

// awaitNeighbours waits until others can find the IPv6 addresses of an interface in the calling thread's network
// namespace. The kernel joins the group that a neighbour solicitation is sent to in a work queue, even for an address
// without duplicate detection (addrconf_dad_work); a solicitation before that is lost, and with it a second.
func awaitNeighbours(ctx context.Context, iface string, addresses []netip.Prefix) error {
	ctx, cancel := context.WithTimeout(ctx, groupLimit)
	defer cancel()
	for _, p := range addresses {
		if p.Addr().Is4() {
			continue
		}
		for {
			joined, err := inGroup(iface, solicitedNode(p.Addr()))
			if err != nil {
				return err
			}
			if joined {
				break
			}
			select {
			case <-time.After(groupPause):
			case <-ctx.Done():
				return fmt.Errorf("wait for neighbour discovery of %s: %w", p.Addr(), ctx.Err())
			}
		}
	}
	return nil
}

// solicitedNode is the group of an address (RFC 4291, 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// inGroup reads the thread's namespace: below /proc/self it would be that of the process's first thread.
func inGroup(iface string, group netip.Addr) (bool, error) {
	b, err := os.ReadFile("/proc/thread-self/net/igmp6")
	if err != nil {
		return false, fmt.Errorf("read multicast groups: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		// index, interface, group, users, flags, timer
		if f := strings.Fields(line); len(f) > 2 && f[1] == iface && f[2] == hex.EncodeToString(group.AsSlice()) {
			return true, nil
		}
	}
	return false, nil
}
