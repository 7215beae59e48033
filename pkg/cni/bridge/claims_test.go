package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"criserver/pkg/cni/nat"
)

func open(t *testing.T, dir string, subnets ...string) *claims {
	t.Helper()
	var prefixes []netip.Prefix
	for _, s := range subnets {
		prefixes = append(prefixes, netip.MustParsePrefix(s))
	}
	c, err := openClaims(dir, prefixes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPoolHandsOutEachAddressOnce(t *testing.T) {
	c := open(t, t.TempDir(), "10.0.0.0/28")
	seen := map[netip.Addr]bool{}
	for i := range 13 { // 16 but the network's, the gateway's and broadcast
		got, err := c.take(fmt.Sprint(i), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		seen[got.addresses[0]] = true
	}
	for _, not := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.15"} {
		if seen[netip.MustParseAddr(not)] {
			t.Errorf("%s was handed out", not)
		}
	}
	if len(seen) != 13 {
		t.Errorf("got %d addresses, want 13", len(seen))
	}
	if _, err := c.take("late", true, nil); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v, want that the subnet is exhausted", err)
	}
}

func TestPoolDoesNotReuseAtOnce(t *testing.T) {
	c := open(t, t.TempDir(), "fd00::/64")
	first, err := c.take("a", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.drop("a"); err != nil {
		t.Fatal(err)
	}
	second, err := c.take("b", true, nil)
	if err != nil || second.addresses[0] == first.addresses[0] {
		t.Errorf("got %v after %v, %v, want another address", second.addresses, first.addresses, err)
	}
}

func TestClaimsSurvive(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, "10.0.0.0/24", "fd00::/64")
	ports := []HostPort{{Protocol: "tcp", HostPort: 80, ContainerPort: 8080}, {Protocol: "udp", HostPort: 53, ContainerPort: 53, HostIP: "127.0.0.1"}}
	want, err := c.take("a", true, ports)
	if err != nil {
		t.Fatal(err)
	}
	if len(want.addresses) != 2 || len(want.ports) != 3 {
		t.Fatalf("got %+v, want an address of each family, and the port of each but the one with an IPv4 address", want)
	}
	// What is not a claim goes: a name would stay taken.
	for _, foreign := range []string{"addresses/x", "ports/6-99-0.0.0.0"} {
		if err := os.WriteFile(filepath.Join(dir, foreign), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c = open(t, dir, "10.0.0.0/24", "fd00::/64")
	got, ok := c.of("a")
	if !ok || !slices.Equal(got.addresses, want.addresses) {
		t.Errorf("got addresses %v, want %v", got.addresses, want.addresses)
	}
	for _, p := range want.ports {
		if !slices.Contains(got.ports, p) {
			t.Errorf("port %+v is lost: %+v", p, got.ports)
		}
	}
	if ids := c.ids(); len(ids) != 1 {
		t.Errorf("pods are %v", ids)
	}
	for range 2 {
		if err := c.drop("a"); err != nil {
			t.Fatal(err)
		}
	}
	if c = open(t, dir, "10.0.0.0/24"); !c.empty() {
		t.Errorf("claims are left: %v", c.ids())
	}
}

// A claim that cannot be written as a whole leaves nothing.
func TestTakeThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, "10.0.0.0/24", "fd00::/64")
	if err := os.Symlink("other", filepath.Join(dir, "ports", "6-80-::")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.take("a", true, []HostPort{{Protocol: "tcp", HostPort: 80, ContainerPort: 80}}); !errors.Is(err, os.ErrExist) {
		t.Errorf("got %v, want that the claim exists", err)
	}
	if !c.empty() || len(c.addresses) != 0 {
		t.Errorf("in memory is left: %v", c.ids())
	}
	entries, err := os.ReadDir(filepath.Join(dir, "addresses"))
	if err != nil || len(entries) != 0 {
		t.Errorf("on disk is left: %v, %v", entries, err)
	}
}

// TestSubnetThatCannotBeForgotten: it stays known, so that it is tried again.
func TestSubnetThatCannotBeForgotten(t *testing.T) {
	c := open(t, t.TempDir(), "10.0.0.0/24")
	if err := c.change([]netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}); err != nil {
		t.Fatal(err)
	}
	former := netip.MustParsePrefix("10.0.0.0/24")
	path := c.subnetPath(former)
	if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "in the way"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := c.forgetSubnet(former); err == nil {
		t.Error("there is no error")
	}
	if got := c.unusedSubnets(); !slices.Equal(got, []netip.Prefix{former}) {
		t.Errorf("unused subnets = %v, want %v", got, former)
	}
	if err := os.RemoveAll(filepath.Join(path, "in the way")); err != nil {
		t.Fatal(err)
	}
	if err := c.forgetSubnet(former); err != nil || len(c.unusedSubnets()) > 0 {
		t.Errorf("then it is forgotten: %v, unused subnets = %v", err, c.unusedSubnets())
	}
}

func TestCheckSubnet(t *testing.T) {
	for _, s := range []string{"10.0.0.1/24", "10.0.0.0/31", "fd00::/127", "127.0.0.0/8", "::ffff:10.0.0.0/120", "0.0.0.0/0", "fe80::/64", "224.0.0.0/4",
		"0.0.0.0/8", "240.0.0.0/4", "255.255.255.0/24", "::/96", "128.0.0.0/1", "8000::/1"} {
		if err := checkSubnet(netip.MustParsePrefix(s)); err == nil {
			t.Errorf("%s is accepted", s)
		}
	}
	for _, s := range []string{"10.0.0.0/30", "10.88.0.0/16", "fd00::/64", "fd00::/126"} {
		if err := checkSubnet(netip.MustParsePrefix(s)); err != nil {
			t.Error(err)
		}
	}
}

func TestSolicitedNode(t *testing.T) {
	if got := solicitedNode(netip.MustParseAddr("4037::01:800:200E:8C6C")); got.String() != "ff02::1:ff0e:8c6c" { // RFC 4291's example
		t.Errorf("got %s", got)
	}
}

func FuzzParsePort(f *testing.F) {
	p := nat.Port{
		Protocol: unix.IPPROTO_TCP, HostIP: netip.IPv4Unspecified(), HostPort: 80,
		Target: netip.MustParseAddr("10.0.0.2"), TargetPort: 8080,
	}
	c := &claims{}
	f.Add(filepath.Base(c.portPath(p)), portTarget("pod", p))
	f.Add("17-53-::", "pod/53/fd00::2")
	f.Add("6-80-127.0.0.1", "pod/80/fd00::2")
	f.Fuzz(func(t *testing.T, name, target string) {
		id, p, err := parsePort(name, target)
		if err != nil {
			return
		}
		again, q, err := parsePort(filepath.Base(c.portPath(p)), portTarget(id, p))
		if err != nil || again != id || q != p {
			t.Errorf("%q -> %q: %v, %+v becomes %v, %+v, %v", name, target, id, p, again, q, err)
		}
	})
}
