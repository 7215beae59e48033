package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func prefixes(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func setCIDRs(t *testing.T, n *Network, all ...string) {
	t.Helper()
	if err := n.SetPodCIDRs(context.Background(), prefixes(all...)); err != nil {
		t.Fatal(err)
	}
}

// bridgeAddresses are those of the built-in network's bridge but the link's own.
func bridgeAddresses(t *testing.T) (out []string) {
	t.Helper()
	list, err := netlink.AddrList(mustLink(t, "cri0"), netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() {
			out = append(out, a.IPNet.String())
		}
	}
	slices.Sort(out)
	return out
}

func wantBridge(t *testing.T, want ...string) {
	t.Helper()
	if got := bridgeAddresses(t); !slices.Equal(got, want) {
		t.Errorf("the bridge has %v, want %v", got, want)
	}
}

// Pods keep their addresses, and their network, when the cluster gives the node others, and after a restart as well.
func TestPodCIDRsOfBuiltinNetwork(t *testing.T) {
	up := newUplink(t)
	c := testConfig(t)
	n := open(t, c)
	t.Cleanup(func() { _ = netlink.LinkDel(mustLink(t, "up0")) })
	older := newPod(t, "older", PortMapping{HostPort: 8081, ContainerPort: 80})
	oldIPs := setup(t, n, older)
	t.Run("traffic", func(servers *testing.T) { // ends the servers
		serve(servers, older.NetNS, 80)
		serve(servers, up.world, 80)
		setCIDRs(t, n, "10.244.1.0/24", "fd00:244:1::/64")
		newer := newPod(t, "newer", PortMapping{HostPort: 8082, ContainerPort: 80})
		newIPs := setup(t, n, newer)
		if want := "10.244.1.2 fd00:244:1::2"; len(newIPs) != 2 || newIPs[0].String()+" "+newIPs[1].String() != want {
			t.Fatalf("the new pod has %v, want %s", newIPs, want)
		}
		serve(servers, newer.NetNS, 80)
		check := func() {
			t.Helper()
			for _, from := range []string{"", older.NetNS, newer.NetNS} {
				for _, to := range slices.Concat(oldIPs, newIPs) {
					mustAsk(t, from, "tcp", to, 80)
				}
			}
			for _, port := range []uint16{8081, 8082} {
				mustAsk(t, "", "tcp", local4, port)
				mustAsk(t, up.world, "tcp", up.node4, port)
			}
			for _, from := range []string{older.NetNS, newer.NetNS} {
				if seen := mustAsk(t, from, "tcp", up.out4, 80); seen != up.node4.String() {
					t.Errorf("the world saw %s, want the node's %s", seen, up.node4)
				}
			}
			wantBridge(t, "10.244.1.1/24", "10.88.0.1/16", "fd00:244:1::1/64", "fd63:7269:88::1/64")
		}
		check()
		n = restart(t, n, older, newer)
		third := newPod(t, "third")
		if ips := setup(t, n, third); ips[0].String() != "10.244.1.3" && ips[0].String() != "10.244.1.4" {
			t.Errorf("after a restart a pod has %v, want one of the pod CIDR", ips)
		}
		check()
	})
	teardown(t, n, older)
	if err := n.GC(context.Background(), []string{"newer", "third"}); err != nil {
		t.Fatal(err)
	}
	wantBridge(t, "10.244.1.1/24", "fd00:244:1::1/64")
	if left, err := os.ReadDir(c.DataDir + "/builtin/subnets"); err != nil || len(left) != 2 {
		t.Errorf("subnets on record: %v, %v, want 2", left, err)
	}
	setCIDRs(t, n, "10.244.1.0/24")
	last := newPod(t, "last")
	if ips := setup(t, n, last); len(ips) != 1 || !ips[0].Is4() {
		t.Errorf("got %v, want one IPv4 address", ips)
	}
}

func TestPodCIDRsWithoutPods(t *testing.T) {
	c := testConfig(t)
	c.Builtin.Linger = 1 << 40
	n := open(t, c)
	p := newPod(t, "p")
	setup(t, n, p)
	teardown(t, n, p) // the bridge lingers
	setCIDRs(t, n, "10.244.1.0/24")
	setup(t, n, p)
	wantBridge(t, "10.244.1.1/24")
	if left, err := os.ReadDir(c.DataDir + "/builtin/subnets"); err != nil || len(left) != 1 {
		t.Errorf("subnets on record: %v, %v, want 1", left, err)
	}
	teardown(t, n, p)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// The bridge's address of the new range is a pod's.
func TestPodCIDRsWithinTheFormerSubnet(t *testing.T) {
	n := open(t, testConfig(t))
	p, q := newPod(t, "p"), newPod(t, "q")
	ips := setup(t, n, p) // 10.88.0.2
	setup(t, n, q)
	// 10.88.0.2/31 is no subnet; that of 10.88.0.2 as first address does not exist, so let the pod have the first of one.
	for ips[0] != netip.MustParseAddr("10.88.0.5") {
		teardown(t, n, p)
		ips = setup(t, n, p)
	}
	err := n.SetPodCIDRs(context.Background(), prefixes("10.88.0.4/30"))
	if !errors.Is(err, ErrGatewayTaken) || !strings.Contains(err.Error(), "of pod p") {
		t.Errorf("got %v, want that the bridge's address is pod p's", err)
	}
	next := newPod(t, "next")
	if ips := setup(t, n, next); ips[0] != netip.MustParseAddr("10.88.0.6") {
		t.Errorf("got %v: a refused range changes nothing", ips)
	}
	teardown(t, n, next)
	teardown(t, n, p)
	setCIDRs(t, n, "10.88.0.4/30")
	if ips := setup(t, n, next); ips[0] != netip.MustParseAddr("10.88.0.6") {
		t.Errorf("got %v, want the one address of the range", ips)
	}
	if _, err := n.Setup(context.Background(), p); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v, want that the range has no more", err)
	}
	serve(t, q.NetNS, 80)
	mustAsk(t, next.NetNS, "tcp", addressesOf(t, q.NetNS, "eth0")[0], 80)
}

func TestPodCIDRsThatAreInvalid(t *testing.T) {
	n := open(t, testConfig(t))
	for _, all := range [][]netip.Prefix{
		nil, {{}}, prefixes("10.0.0.0/24", "10.1.0.0/24"), prefixes("10.0.0.0/31"), prefixes("127.0.0.0/8"), prefixes("10.0.0.1/24"),
	} {
		if err := n.SetPodCIDRs(context.Background(), all); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: got %v, want ErrInvalid", all, err)
		}
	}
}

func TestPodCIDRsAndFixedSubnets(t *testing.T) {
	c := testConfig(t)
	c.Builtin.Subnets, c.Builtin.Fixed = prefixes("10.99.0.0/16"), true
	n := open(t, c)
	setCIDRs(t, n, "10.244.1.0/24")
	p := newPod(t, "p")
	if ips := setup(t, n, p); ips[0].String() != "10.99.0.2" {
		t.Errorf("got %v, want one of the operator's subnet", ips)
	}
	n = restart(t, n, p)
	q := newPod(t, "q")
	if ips := setup(t, n, q); ips[0].String() != "10.99.0.3" {
		t.Errorf("got %v, want one of the operator's subnet", ips)
	}
}

func TestDamagedPodCIDRs(t *testing.T) {
	c := testConfig(t)
	n := open(t, c)
	setCIDRs(t, n, "10.244.1.0/24")
	if err := os.WriteFile(filepath.Join(c.DataDir, cidrFile), []byte("10.244"), 0o600); err != nil {
		t.Fatal(err)
	}
	n = restart(t, n)
	if ips := setup(t, n, newPod(t, "p")); !strings.HasPrefix(ips[0].String(), "10.88.") {
		t.Errorf("got %v, want one of the default subnet", ips)
	}
}

func TestTemplate(t *testing.T) {
	o := newOperator(t)
	o.plugin(t, "one", "")
	o.config.Template = filepath.Join(t.TempDir(), "template")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(o.config.Template, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(chain("1.0.0", "made", `{"type":"one","subnet":"{{.PodCIDR}}"}`))
	o.config.Builtin.Disabled = false
	n := open(t, o.config)
	if err := n.Ready(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "waits for the pod CIDR") {
		t.Errorf("got %v, want that the template waits", err)
	}
	setCIDRs(t, n, "10.244.1.0/24", "fd00::/64")
	setup(t, n, newPod(t, "p"))
	if calls := o.calls(t, true); len(calls) != 1 || !strings.Contains(calls[0], `"subnet":"10.244.1.0/24"`) {
		t.Errorf("got %q, want the network of the template", calls)
	}
	setCIDRs(t, n, "10.244.2.0/24")
	made := filepath.Join(o.config.ConfDir, "10-criserver.conflist")
	wantMade := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(made); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s has %q, %v, want %s", made, b, err, want)
		}
	}
	wantMade("10.244.2.0/24")
	write("{{")
	if err := n.SetPodCIDRs(context.Background(), prefixes("10.244.3.0/24")); err == nil || !strings.Contains(err.Error(), o.config.Template) {
		t.Errorf("got %v, want the template's name", err)
	}
	wantMade("10.244.2.0/24")
	// The kubelet does not tell again when the daemon restarts.
	write(chain("1.0.0", "made", `{"type":"one","range":"{{index .PodCIDRRanges 0}}"}`))
	n = restart(t, n, Pod{ID: "p"})
	wantMade(`"range":"10.244.2.0/24"`)
	o.conf(t, "00-other.conflist", chain("1.0.0", "other", "one"))
	if err := os.Remove(made); err != nil {
		t.Fatal(err)
	}
	setCIDRs(t, n, "10.244.4.0/24")
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("a configuration was made beside the operator's: %v", err)
	}
}

// Pods come and go while the cluster changes its mind.
func TestPodCIDRsWhilePodsComeAndGo(t *testing.T) {
	n := open(t, testConfig(t))
	stay, pods := newPod(t, "stay"), make([]Pod, 24)
	ip := setup(t, n, stay)[0]
	serve(t, stay.NetNS, 80)
	for i := range pods {
		pods[i] = newPod(t, fmt.Sprint("pod", i), PortMapping{HostPort: int32(9000 + i), ContainerPort: 80})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 20 {
			if err := n.SetPodCIDRs(context.Background(), prefixes(fmt.Sprintf("10.24%d.0.0/24", i%4), fmt.Sprintf("fd00:%d::/64", i%4))); err != nil {
				t.Error(err)
			}
		}
	}()
	each(pods, func(p Pod) {
		for range 4 {
			r, err := n.Setup(context.Background(), p)
			if err != nil {
				t.Error(err)
				return
			}
			for _, family := range r.IPs {
				if err := pingFrom(t, p.NetNS, family, ip); err != nil {
					t.Errorf("pod %s, which has %s: %v", p.ID, family, err)
				}
			}
			if err := n.Teardown(context.Background(), p); err != nil {
				t.Error(err)
			}
		}
	})
	<-done
	teardown(t, n, stay)
}

// pingFrom has a pod reach another one, if the address it has is of that one's family.
func pingFrom(t *testing.T, ns string, own, other netip.Addr) error {
	if own.Is4() != other.Is4() {
		return nil
	}
	_, err := ask(t, ns, "tcp", other, 80)
	return err
}
