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
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	xipv4 "golang.org/x/net/ipv4"
	xipv6 "golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"time"

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

// A client that keeps its socket must reach the pod that has the host port now.
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

func TestTeardownWithoutNamespace(t *testing.T) {
	for name, path := range map[string]func(Pod) string{
		"path is gone": func(p Pod) string { return p.NetNS },
		"no path":      func(Pod) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			n := open(t, testConfig(t))
			p := newPod(t, "p", PortMapping{HostPort: 80, ContainerPort: 80})
			setup(t, n, p)
			unpin(t, p.NetNS)
			for range 2 {
				teardown(t, n, Pod{ID: p.ID, NetNS: path(p)})
			}
			assertNothingLeft(t, n.config)
		})
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

func TestRestartKeepsPods(t *testing.T) {
	c := testConfig(t)
	n := open(t, c)
	kept, gone := newPod(t, "kept", PortMapping{HostPort: 80, ContainerPort: 80}), newPod(t, "gone", PortMapping{HostPort: 81, ContainerPort: 80})
	ip := setup(t, n, kept)[0]
	setup(t, n, gone)
	serve(t, kept.NetNS, 80)

	n = restart(t, n, kept)
	if err := n.GC(context.Background(), []string{kept.ID}); err != nil {
		t.Fatal(err)
	}
	mustAsk(t, "", "tcp", ip, 80)
	mustAsk(t, "", "tcp", local4, 80)
	if _, err := os.Stat(c.DataDir + "/attachments/" + gone.ID); !os.IsNotExist(err) {
		t.Errorf("the pod that is gone is still attached: %v", err)
	}
	next := newPod(t, "next", PortMapping{HostPort: 81, ContainerPort: 80})
	if got := setup(t, n, next)[0]; got == ip {
		t.Errorf("address %s is given out twice", got)
	}
	if _, err := n.Setup(context.Background(), newPod(t, "late", PortMapping{HostPort: 80, ContainerPort: 80})); !errors.Is(err, ErrPortTaken) {
		t.Errorf("got %v, want that the port is taken", err)
	}
}

func TestGCTakesDownAll(t *testing.T) {
	c := testConfig(t)
	n := open(t, c)
	for i := range 3 {
		p := newPod(t, fmt.Sprintf("pod%d", i), PortMapping{HostPort: int32(80 + i), ContainerPort: 80})
		setup(t, n, p)
		if i == 1 {
			unpin(t, p.NetNS)
		}
	}
	// Crashes leave claims without a record, and a stray link.
	if err := os.Remove(c.DataDir + "/attachments/pod2"); err != nil {
		t.Fatal(err)
	}
	stray := netlink.NewLinkAttrs()
	stray.Name, stray.MasterIndex = "criv00000000000", mustLink(t, "cri0").Attrs().Index
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: stray, PeerName: "stray0"}); err != nil {
		t.Fatal(err)
	}
	n = restart(t, n)
	if err := n.GC(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	assertNothingLeft(t, c)
}

func TestGCSparesPodsOfTheLastMoment(t *testing.T) {
	c := testConfig(t)
	c.GCGrace = time.Hour
	n := open(t, c)
	p := newPod(t, "new")
	ip := setup(t, n, p)[0]
	if err := n.GC(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	serve(t, p.NetNS, 80)
	mustAsk(t, "", "tcp", ip, 80)
}

// A Setup that was killed at any point is completed by the next one.
func TestSetupAfterCrash(t *testing.T) {
	c := testConfig(t)
	n := open(t, c)
	p := newPod(t, "p", PortMapping{HostPort: 80, ContainerPort: 80})
	setup(t, n, p)
	n = restart(t, n)
	p.NetNS = NewNetNS(t)
	ip := setup(t, n, p)[0]
	serve(t, p.NetNS, 80)
	mustAsk(t, "", "tcp", ip, 80)
	mustAsk(t, "", "tcp", local4, 80)
}

func TestDamagedRecord(t *testing.T) {
	c := testConfig(t)
	n := open(t, c)
	for name, damage := range map[string]func() error{
		"empty": func() error { return os.WriteFile(c.DataDir+"/attachments/p", nil, 0o600) },
		"and cache empty": func() error {
			return errors.Join(os.WriteFile(c.DataDir+"/attachments/p", nil, 0o600), os.WriteFile(c.DataDir+"/cache/results/criserver-p-eth0", nil, 0o600))
		},
	} {
		p := newPod(t, "p")
		if _, err := n.Setup(context.Background(), p); err != nil {
			t.Fatal(err)
		}
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if err := n.Teardown(context.Background(), p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		assertNothingLeft(t, c)
	}
}

func TestRepair(t *testing.T) {
	flush := func(change func(*nftables.Conn)) {
		conn, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		change(conn)
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	table := &nftables.Table{Name: "criserver", Family: nftables.TableFamilyINet}
	n := open(t, testConfig(t))
	p := newPod(t, "p", PortMapping{HostPort: 80, ContainerPort: 80})
	ip := setup(t, n, p)[0]
	serve(t, p.NetNS, 80)
	for name, damage := range map[string]func(){
		"flush ruleset": func() { flush(func(c *nftables.Conn) { c.DelTable(table) }) },
		"flush table":   func() { flush(func(c *nftables.Conn) { c.FlushTable(table) }) },
		"delete bridge": func() {
			if err := netlink.LinkDel(mustLink(t, "cri0")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		damage()
		if name != "flush table" { // found by GC and the watch, but not by a Setup
			q := newPod(t, "q", PortMapping{HostPort: 81, ContainerPort: 80})
			setup(t, n, q)
			if _, err := ask(t, q.NetNS, "tcp", ip, 80); err != nil {
				t.Errorf("from a pod after %s: %v", name, err)
			}
			teardown(t, n, q)
		} else if err := n.GC(context.Background(), []string{p.ID}); err != nil {
			t.Fatal(err)
		}
		if _, err := ask(t, "", "tcp", local4, 80); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
	flush(func(c *nftables.Conn) { c.DelTable(table) })
	teardown(t, n, p)
}

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

func TestBridgeThatIsNotOurs(t *testing.T) {
	c := testConfig(t)
	c.Builtin.Bridge = "own0"
	a := netlink.NewLinkAttrs()
	a.Name = "own0"
	own := &netlink.Bridge{LinkAttrs: a}
	if err := netlink.LinkAdd(own); err != nil {
		t.Fatal(err)
	}
	n := reopen(t, c)
	p := newPod(t, "p")
	setup(t, n, p)
	teardown(t, n, p)
	if err := netlink.LinkDel(own); err != nil {
		t.Errorf("the operator's bridge is gone: %v", err)
	}
	assertNothingLeft(t, c)
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
