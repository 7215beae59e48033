package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

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
