package bridge

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// pool hands out the addresses of a subnet, each time the next one after the last, so that an address stays unused
// for as long as possible after its pod has gone. It is locked by its owner.
type pool struct {
	prefix      netip.Prefix
	gateway     netip.Addr
	first, last netip.Addr
	size, used  uint64
	cursor      netip.Addr // the last address taken
	// former says that no more addresses are taken from it.
	former bool
}

// special are addresses that no packet is sent from (RFC 6890): "this network", loopback, link-local, multicast, and what is reserved.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// checkSubnet refuses a subnet without room for a gateway and a pod, or that is not for hosts.
func checkSubnet(s netip.Prefix) error {
	switch {
	case !s.IsValid():
		return fmt.Errorf("invalid subnet %v", s)
	case s.Addr().Is4In6():
		return fmt.Errorf("subnet %s is an IPv4 address written as IPv6", s)
	case s.Masked() != s:
		return fmt.Errorf("subnet %s has host bits set: %s?", s, s.Masked())
	case s.Addr().BitLen()-s.Bits() < 2:
		return fmt.Errorf("subnet %s is too small: at least 2 bits are needed for a gateway and a pod", s)
	case slices.ContainsFunc(special, s.Overlaps):
		return fmt.Errorf("subnet %s is not for pods", s)
	}
	return nil
}

// newPool leaves out a subnet's first address, the gateway's after it and, of IPv4, the last one (broadcast).
func newPool(s netip.Prefix) *pool {
	p := &pool{prefix: s, gateway: gateway(s), last: lastOf(s)}
	p.first = p.gateway.Next()
	p.cursor = p.gateway
	reserved := uint64(2)
	if s.Addr().Is4() {
		p.last = p.last.Prev()
		reserved = 3
	}
	if bits := s.Addr().BitLen() - s.Bits(); bits < 64 {
		p.size = 1<<bits - reserved
	} else {
		p.size = math.MaxUint64
	}
	return p
}

// gateway is the address of the bridge in a subnet, its first one.
func gateway(s netip.Prefix) netip.Addr { return s.Addr().Next() }

func lastOf(s netip.Prefix) netip.Addr {
	b := s.Addr().AsSlice()
	for bit := s.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// pick returns the next free address. It looks at no more than the used ones and one.
func (p *pool) pick(taken func(netip.Addr) bool) (netip.Addr, bool) {
	if p.used >= p.size {
		return netip.Addr{}, false
	}
	a := p.cursor
	for {
		if a = a.Next(); !a.IsValid() || p.last.Less(a) {
			a = p.first
		}
		if !taken(a) {
			return a, true
		}
	}
}

// owns tells whether the address is one that the pool hands out.
func (p *pool) owns(a netip.Addr) bool {
	return p.prefix.Contains(a) && !a.Less(p.first) && !p.last.Less(a)
}

func (p *pool) took(a netip.Addr) {
	if !p.owns(a) {
		return
	}
	p.used++
	p.cursor = a
}

func (p *pool) gaveBack(a netip.Addr) {
	if p.owns(a) {
		p.used--
	}
}
