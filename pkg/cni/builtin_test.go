package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	xipv4 "golang.org/x/net/ipv4"
	xipv6 "golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"criserver/pkg/cni/netns"
)

var (
	gateway4 = netip.MustParseAddr("10.88.0.1")
	gateway6 = netip.MustParseAddr("fd63:7269:88::1")
	local4   = netip.MustParseAddr("127.0.0.1")
)

func ping(t *testing.T, ns string, a netip.Addr) error {
	t.Helper()
	return in(t, ns, func() error {
		network, kind := "ip4:icmp", icmp.Type(xipv4.ICMPTypeEcho)
		if a.Is6() {
			network, kind = "ip6:ipv6-icmp", xipv6.ICMPTypeEchoRequest
		}
		c, err := icmp.ListenPacket(network, "")
		if err != nil {
			return err
		}
		defer c.Close()
		m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: 7, Seq: 1, Data: []byte("x")}}
		b, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, &net.IPAddr{IP: a.AsSlice()}); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 256)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return err
			}
			// The echo request, if looped back, and neighbour discovery are seen as well.
			if got := icmpType(a, buf[0]); from.String() == a.String() && (got == xipv4.ICMPTypeEchoReply || got == xipv6.ICMPTypeEchoReply) {
				return nil
			}
		}
	})
}

func icmpType(a netip.Addr, b byte) icmp.Type {
	if a.Is6() {
		return xipv6.ICMPType(b)
	}
	return xipv4.ICMPType(b)
}

func TestPodsReachEachOther(t *testing.T) {
	n := open(t, testConfig(t))
	a, b := newPod(t, "a"), newPod(t, "b")
	ipsA, ipsB := setup(t, n, a), setup(t, n, b)
	if len(ipsA) != 2 || !ipsA[0].Is4() || !ipsA[1].Is6() {
		t.Fatalf("got addresses %v, want one of each family, IPv4 first", ipsA)
	}
	serve(t, b.NetNS, 80)
	for i, ip := range ipsB {
		for _, network := range []string{"tcp", "udp"} {
			if seen := mustAsk(t, a.NetNS, network, ip, 80); seen != ipsA[i].String() {
				t.Errorf("%s: pod b saw %s, want pod a's own address %s", network, seen, ipsA[i])
			}
			mustAsk(t, "", network, ip, 80) // from the node, as probes do
		}
		if err := ping(t, a.NetNS, ip); err != nil {
			t.Errorf("ping %s: %v", ip, err)
		}
	}
	for _, gw := range []netip.Addr{gateway4, gateway6} {
		if err := ping(t, a.NetNS, gw); err != nil {
			t.Errorf("ping gateway %s: %v", gw, err)
		}
	}
	if err := n.Check(context.Background(), a); err != nil {
		t.Error(err)
	}
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
	serve(t, a.NetNS, 81)
	mustAsk(t, a.NetNS, "tcp", local4, 81) // the loopback interface is up
}

func TestMasquerade(t *testing.T) {
	up := newUplink(t)
	n := open(t, testConfig(t))
	t.Cleanup(func() { _ = netlink.LinkDel(mustLink(t, "up0")) })
	p := newPod(t, "p")
	setup(t, n, p)
	serve(t, up.world, 80)
	for _, network := range []string{"tcp", "udp"} {
		if seen := mustAsk(t, p.NetNS, network, up.out4, 80); seen != up.node4.String() {
			t.Errorf("%s: the world saw %s, want the node's %s", network, seen, up.node4)
		}
		if seen := mustAsk(t, p.NetNS, network, up.out6, 80); seen != up.node6.String() {
			t.Errorf("%s: the world saw %s, want the node's %s", network, seen, up.node6)
		}
	}
	if mtu := mustLink(t, "cri0").Attrs().MTU; mtu != 1400 {
		t.Errorf("MTU of the bridge is %d, want 1400 as the default route's interface", mtu)
	}
}

// A client that keeps its socket must reach the pod that has the host port now.
func TestInvalidPods(t *testing.T) {
	n := open(t, testConfig(t))
	for name, change := range map[string]func(*Pod){
		"no id":          func(p *Pod) { p.ID = "" },
		"path as id":     func(p *Pod) { p.ID = "../x" },
		"no namespace":   func(p *Pod) { p.NetNS = "" },
		"no such ns":     func(p *Pod) { p.NetNS = "/nowhere" },
		"argument":       func(p *Pod) { p.Name = "a;K8S_POD_NAMESPACE=b" },
		"port":           func(p *Pod) { p.Ports = []PortMapping{{HostPort: 65536, ContainerPort: 1}} },
		"container port": func(p *Pod) { p.Ports = []PortMapping{{HostPort: 1}} },
		"protocol":       func(p *Pod) { p.Ports = []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}} },
		"host ip":        func(p *Pod) { p.Ports = []PortMapping{{HostPort: 1, ContainerPort: 1, HostIP: "localhost"}} },
		"port twice": func(p *Pod) {
			p.Ports = []PortMapping{{HostPort: 1, ContainerPort: 1}, {HostPort: 1, ContainerPort: 2}}
		},
		"interface taken": func(p *Pod) { addInterface(t, p.NetNS, InterfaceName) },
	} {
		p := newPod(t, "p")
		change(&p)
		if _, err := n.Setup(context.Background(), p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func addInterface(t *testing.T, ns, name string) {
	t.Helper()
	err := netns.Do(ns, func(h *netlink.Handle) error {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return h.LinkAdd(&netlink.Bridge{LinkAttrs: a})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	const many = 100
	n := open(t, testConfig(t))
	pods := make([]Pod, many)
	for i := range pods {
		pods[i] = newPod(t, fmt.Sprintf("pod%d", i), PortMapping{HostPort: int32(10000 + i), ContainerPort: 80})
	}
	var mu sync.Mutex
	owner := map[netip.Addr]string{}
	each(pods, func(p Pod) {
		r, err := n.Setup(context.Background(), p)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, ip := range r.IPs {
			if owner[ip] != "" {
				t.Errorf("pods %s and %s both have %s", owner[ip], p.ID, ip)
			}
			owner[ip] = p.ID
		}
	})
	if len(owner) != 2*many {
		t.Errorf("got %d addresses, want %d", len(owner), 2*many)
	}
	serve(t, pods[7].NetNS, 80)
	mustAsk(t, pods[93].NetNS, "tcp", gateway4, 10007)
	each(pods, func(p Pod) { teardown(t, n, p) })
}

func each(pods []Pod, f func(Pod)) {
	var wg sync.WaitGroup
	for _, p := range pods {
		wg.Go(func() { f(p) })
	}
	wg.Wait()
}

func TestExhaustedSubnet(t *testing.T) {
	c := testConfig(t)
	c.Builtin.Subnets = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/29")}
	n := open(t, c)
	var last Pod
	for i := range 5 { // 8 but the network's, the gateway's and broadcast
		last = newPod(t, fmt.Sprintf("pod%d", i))
		setup(t, n, last)
	}
	if _, err := n.Setup(context.Background(), newPod(t, "late")); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "10.99.0.0/29") {
		t.Errorf("got %v, want that the subnet is exhausted", err)
	}
	teardown(t, n, last)
	setup(t, n, newPod(t, "next"))
}

// A Setup that was killed at any point is completed by the next one.
func TestPodWithoutIPv6(t *testing.T) {
	n := open(t, testConfig(t))
	p := newPod(t, "p", PortMapping{HostPort: 80, ContainerPort: 80})
	err := in(t, p.NetNS, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	if ips := setup(t, n, p); len(ips) != 1 || !ips[0].Is4() {
		t.Errorf("got %v, want one IPv4 address", ips)
	}
}

func TestNodeWithoutIPv6(t *testing.T) {
	c := testConfig(t)
	set := func(value string) {
		for _, name := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte(value), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	set("1")
	t.Cleanup(func() { set("0") })
	n := open(t, c)
	p := newPod(t, "p", PortMapping{HostPort: 80, ContainerPort: 80})
	ips := setup(t, n, p)
	if len(ips) != 1 || !ips[0].Is4() {
		t.Errorf("got %v, want one IPv4 address", ips)
	}
	serve(t, p.NetNS, 80)
	mustAsk(t, "", "tcp", local4, 80)
}

func BenchmarkSetupTeardown(b *testing.B) {
	n := open(b, testConfig(b))
	base := Pod{ID: "base", NetNS: NewNetNS(b)}
	setup(b, n, base) // bridge and table stay, as on a node with pods
	var down time.Duration
	for b.Loop() {
		b.StopTimer()
		p := Pod{ID: "p", NetNS: NewNetNS(b)}
		b.StartTimer()
		if _, err := n.Setup(context.Background(), p); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := n.Teardown(context.Background(), p); err != nil {
			b.Fatal(err)
		}
		down += time.Since(start)
		b.StopTimer()
		unpin(b, p.NetNS)
		b.StartTimer()
	}
	b.ReportMetric(float64(down.Microseconds())/float64(b.N), "teardown-µs/op")
}

// TestFirstPodIsReachableAtOnce: what the node sends to its first pod is not lost, however late the kernel's work queue
// runs: here it has to wait for the lock of all links. A dump of links shows what the kernel has seen to, while to ask for
// one link would make it do so.
func TestFirstPodIsReachableAtOnce(t *testing.T) {
	c := testConfig(t)
	c.Builtin.Subnets = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}
	n := open(t, c)
	lo := mustLink(t, "lo")
	var stop atomic.Bool
	var busy sync.WaitGroup
	for range 4 {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		busy.Go(func() {
			defer h.Close()
			for i := 0; !stop.Load(); i++ {
				if err := h.LinkSetAlias(lo, fmt.Sprint("busy", i%2)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer busy.Wait()
	defer stop.Store(true)
	for i := range 20 {
		p := newPod(t, fmt.Sprint("p", i))
		if _, err := n.Setup(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		all, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			t.Fatal(err)
		}
		for _, l := range all {
			if a := l.Attrs(); strings.HasPrefix(a.Name, "cri") && a.OperState != netlink.OperUp {
				t.Errorf("pod %d: link %s is %s when the pod's network is set up", i, a.Name, a.OperState)
			}
		}
		teardown(t, n, p)
	}
}
