package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"

	"criserver/pkg/cni/netns"
	"criserver/pkg/cni/shape"
)

// podUsesIPv6 tells whether the pod's namespace, by its sysctls, lets an interface speak IPv6.
func podUsesIPv6(path string) (use bool, err error) {
	err = netns.Do(path, func(*netlink.Handle) error {
		use = ipv6Enabled()
		return nil
	})
	return use, err
}

// connect makes the pod's link and configures the pod's end of it.
func (b *Bridge) connect(ctx context.Context, a Attachment, bridge *netlink.LinkAttrs, addresses []netip.Prefix) error {
	ns, err := os.Open(a.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	err = b.links.addVeth(veth{
		name: vethName(a.ID), bridge: bridge, peerName: a.IfName, peerMAC: macOf(addresses[0].Addr()), peerNS: int(ns.Fd()),
	})
	if err != nil {
		return err
	}
	err = netns.Do(a.NetNS, func(h *netlink.Handle) error { return configurePod(ctx, h, a, addresses) })
	if err != nil {
		return err
	}
	if err := b.links.finishVeth(ctx, vethName(a.ID)); err != nil {
		return err
	}
	return shape.Apply(b.links.Handle, vethName(a.ID), deviceName(a.ID), a.Rates)
}

func configurePod(ctx context.Context, h *netlink.Handle, a Attachment, addresses []netip.Prefix) error {
	name := a.IfName
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", name, err)
	}
	if ipv6Enabled() {
		if err := quietIPv6(name); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("switch on interface %s: %w", name, err)
	}
	for _, p := range addresses {
		if err := h.AddrAdd(link, address(p)); err != nil {
			return fmt.Errorf("give interface %s address %s: %w", name, p, err)
		}
	}
	if a.DefaultRoute {
		if err := setDefaultRoutes(h, link, addresses); err != nil {
			return err
		}
	}
	return awaitNeighbours(ctx, name, addresses)
}

// setDefaultRoutes leads all traffic of the families of the addresses to the bridge.
func setDefaultRoutes(h *netlink.Handle, link netlink.Link, addresses []netip.Prefix) error {
	for _, p := range addresses {
		gw := gateway(p.Masked())
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gw.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: gw.AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("set default route by %s: %w", gw, err)
		}
	}
	return nil
}

// checkPod returns an error unless the pod's interface is up and has its addresses.
func checkPod(h *netlink.Handle, name string, want []netip.Addr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", name, err)
	}
	if link.Attrs().OperState != netlink.OperUp {
		return fmt.Errorf("interface %s is %s", name, link.Attrs().OperState)
	}
	list, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of interface %s: %w", name, err)
	}
	var have []netip.Addr
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			have = append(have, ip.Unmap())
		}
	}
	var errs []error
	for _, ip := range want {
		if !slices.Contains(have, ip) {
			errs = append(errs, fmt.Errorf("interface %s lacks address %s", name, ip))
		}
	}
	return errors.Join(errs...)
}
