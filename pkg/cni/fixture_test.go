package cni

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"criserver/pkg/cni/netns"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
}

// NewNetNS makes a network namespace that is pinned until the test ends, and returns its path.
func NewNetNS(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal("make network namespace:", err)
	}
	t.Cleanup(func() { unpin(t, path) })
	return path
}

func unpin(t testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && netns.Exists(path) {
		t.Error("unpin network namespace:", err)
	}
}

// in runs f in a network namespace; "" is the node's.
func in(t testing.TB, path string, f func() error) error {
	t.Helper()
	if path == "" {
		return f()
	}
	return netns.Do(path, func(*netlink.Handle) error { return f() })
}

// testConfig is for a network with directories of its own and no protection from GC.
func testConfig(t testing.TB) Config {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	return Config{ConfDir: dir + "/net.d", DataDir: dir + "/data", GCGrace: -1}
}

// open opens a network. When the test ends nothing of it may be left: neither in the kernel nor on disk.
func open(t testing.TB, c Config) *Network {
	t.Helper()
	t.Cleanup(func() { assertNothingLeft(t, c) })
	return reopen(t, c)
}

// reopen opens a network as a process does that follows another.
func reopen(t testing.TB, c Config) *Network {
	t.Helper()
	n, err := New(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// restart replaces a network by one that finds what it left, as after a crash of the process. It takes down the pods
// when the test ends: the former one knows no longer what there is.
func restart(t testing.TB, n *Network, pods ...Pod) *Network {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	next := reopen(t, n.config)
	for _, p := range pods {
		t.Cleanup(func() { teardown(t, next, p) })
	}
	return next
}

func assertNothingLeft(t testing.TB, c Config) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "cri") || l.Type() == "veth" || l.Type() == "bridge" {
			t.Errorf("link %s is left", name)
		}
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		t.Errorf("nftables table %s is left", table.Name)
	}
	for _, dir := range []string{"attachments", "builtin/addresses", "builtin/ports", "cache/results"} {
		entries, err := os.ReadDir(filepath.Join(c.DataDir, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("file %s/%s is left", dir, e.Name())
		}
	}
}

// newPod describes a pod with a namespace of its own.
func newPod(t testing.TB, id string, ports ...PortMapping) Pod {
	t.Helper()
	return Pod{ID: id, Name: id, Namespace: "test", UID: "uid-" + id, NetNS: NewNetNS(t), Ports: ports}
}

// setup attaches the pod until the test ends, at the latest.
func setup(t testing.TB, n *Network, p Pod) []netip.Addr {
	t.Helper()
	result, err := n.Setup(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { teardown(t, n, p) })
	return result.IPs
}

func teardown(t testing.TB, n *Network, p Pod) {
	t.Helper()
	if err := n.Teardown(context.Background(), p); err != nil {
		t.Error(err)
	}
}

// serve answers each TCP connection and each datagram at the port with the client's address, within a namespace.
func serve(t testing.TB, ns string, port uint16) {
	t.Helper()
	err := in(t, ns, func() error {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
				_ = c.Close()
			}
		}()
		u, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = u.Close() })
		go func() {
			b := make([]byte, 16)
			for {
				_, from, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, _ = u.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal("serve:", err)
	}
}

// patience is below the second after which TCP repeats a lost SYN: a lost packet is a failure.
const patience = 900 * time.Millisecond

// ask connects to a server of serve from within a namespace and returns what address it saw.
func ask(t testing.TB, ns, network string, a netip.Addr, port uint16) (seen string, err error) {
	t.Helper()
	err = in(t, ns, func() error {
		d := net.Dialer{Timeout: patience}
		c, err := d.Dial(network, netip.AddrPortFrom(a, port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			b := make([]byte, 64)
			n, err := c.Read(b)
			seen = string(b[:n])
			return err
		}
		b, err := io.ReadAll(c)
		seen = string(b)
		return err
	})
	return seen, err
}

func mustAsk(t testing.TB, ns, network string, a netip.Addr, port uint16) string {
	t.Helper()
	seen, err := ask(t, ns, network, a, port)
	if err != nil {
		t.Errorf("%s to %s port %d: %v", network, a, port, err)
	}
	return seen
}

// uplink connects the node to a namespace that stands for the world; the node's default route leads there.
type uplink struct {
	world        string
	node4, node6 netip.Addr
	out4, out6   netip.Addr
}

func newUplink(t testing.TB) uplink {
	t.Helper()
	u := uplink{
		world: NewNetNS(t),
		node4: netip.MustParseAddr("192.0.2.1"), out4: netip.MustParseAddr("192.0.2.2"),
		node6: netip.MustParseAddr("2001:db8::1"), out6: netip.MustParseAddr("2001:db8::2"),
	}
	f, err := os.Open(u.world)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = "up0", 1400
	veth := &netlink.Veth{LinkAttrs: a, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(f.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	up := func(h *netlink.Handle, name string, addrs ...string) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := h.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return h.LinkSetUp(l)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := up(h, "up0", "192.0.2.1/24", "2001:db8::1/64"); err != nil {
		t.Fatal(err)
	}
	err = netns.Do(u.world, func(h *netlink.Handle) error { return up(h, "eth0", "192.0.2.2/24", "2001:db8::2/64") })
	if err != nil {
		t.Fatal(err)
	}
	for _, gw := range []netip.Addr{u.out4, u.out6} {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: mustLink(t, "up0").Attrs().Index, Gw: gw.AsSlice()}); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

func mustLink(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
