package cni

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"criserver/pkg/cni/netns"
)

func TestHostPorts(t *testing.T) {
	up := newUplink(t)
	n := open(t, testConfig(t))
	t.Cleanup(func() { _ = netlink.LinkDel(mustLink(t, "up0")) })
	p := newPod(t, "server",
		PortMapping{Protocol: "tcp", HostPort: 8080, ContainerPort: 80},
		PortMapping{Protocol: "UDP", HostPort: 8080, ContainerPort: 80},
		PortMapping{HostPort: 9000, ContainerPort: 80, HostIP: "127.0.0.1"},
		PortMapping{HostPort: 9001, ContainerPort: 80, HostIP: up.node6.String()},
		PortMapping{ContainerPort: 80})
	other := newPod(t, "client")
	ips, clientIPs := setup(t, n, p), setup(t, n, other)
	serve(t, p.NetNS, 80)
	from := map[string]string{"node": "", "other pod": other.NetNS, "the pod itself": p.NetNS, "world": up.world}
	for name, ns := range from {
		for _, network := range []string{"tcp", "udp"} {
			for _, to := range []netip.Addr{local4, up.node4, up.node6, gateway4, gateway6} {
				if ns != "" && to == local4 || ns == up.world && (to == gateway4 || to == gateway6) {
					continue
				}
				if _, err := ask(t, ns, network, to, 8080); err != nil {
					t.Errorf("%s from %s to %s: %v", network, name, to, err)
				}
			}
		}
	}
	if seen := mustAsk(t, up.world, "tcp", up.node4, 8080); seen != up.out4.String() {
		t.Errorf("the pod saw %s, want the client's own address %s", seen, up.out4)
	}
	mustAsk(t, "", "tcp", local4, 9000)
	mustAsk(t, up.world, "tcp", up.node6, 9001)
	for _, a := range []netip.AddrPort{
		netip.AddrPortFrom(up.node4, 9000), netip.AddrPortFrom(up.node4, 9001),
		netip.AddrPortFrom(netip.IPv6Loopback(), 8080), // refused at once: see package nat
	} {
		if _, err := ask(t, "", "tcp", a.Addr(), a.Port()); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", a, err)
		}
	}
	if seen := mustAsk(t, other.NetNS, "tcp", ips[0], 80); seen != clientIPs[0].String() {
		t.Errorf("without a host port pod saw %s, want %s", seen, clientIPs[0])
	}
	teardown(t, n, p)
	if _, err := ask(t, "", "tcp", local4, 8080); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after teardown: %v, want connection refused", err)
	}
}

func TestUDPHostPortMovesToTheNextPod(t *testing.T) {
	n := open(t, testConfig(t))
	c, err := net.Dial("udp", "127.0.0.1:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, id := range []string{"one", "two"} {
		p := newPod(t, id, PortMapping{Protocol: "udp", HostPort: 5353, ContainerPort: 53})
		setup(t, n, p)
		serve(t, p.NetNS, 53)
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 64)); err != nil {
			t.Errorf("pod %s does not answer: %v", id, err)
		}
		teardown(t, n, p)
	}
}

func TestPodCannotReachLoopbackOfTheNode(t *testing.T) {
	n := open(t, testConfig(t))
	p := newPod(t, "p")
	setup(t, n, p)
	serve(t, "", 7777)
	mustAsk(t, p.NetNS, "tcp", gateway4, 7777)
	// The pod sends packets for 127.0.0.1 to the bridge, which route_localnet would let the node take.
	err := netns.Do(p.NetNS, func(h *netlink.Handle) error {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		addrs, err := h.AddrList(lo, unix.AF_INET)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := h.AddrDel(lo, &a); err != nil {
				return err
			}
		}
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway4.AsSlice(),
			Dst: &net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(32, 32)}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, p.NetNS, "tcp", local4, 7777); err == nil {
		t.Error("the pod reaches the node's loopback")
	}
}

func TestPortOfAnotherPod(t *testing.T) {
	n := open(t, testConfig(t))
	setup(t, n, newPod(t, "owner", PortMapping{HostPort: 80, ContainerPort: 80}))
	for _, m := range []PortMapping{
		{HostPort: 80, ContainerPort: 8080},
		{HostPort: 80, ContainerPort: 80, HostIP: "127.0.0.1"},
		{HostPort: 80, ContainerPort: 80, HostIP: "::"},
	} {
		_, err := n.Setup(context.Background(), newPod(t, "late", m))
		if !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), "owner") {
			t.Errorf("%+v: got %v, want an error that names the owner", m, err)
		}
	}
	setup(t, n, newPod(t, "udp", PortMapping{Protocol: "udp", HostPort: 80, ContainerPort: 80}))
}
