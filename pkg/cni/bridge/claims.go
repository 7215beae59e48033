package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/cni/nat"
)

// ErrExhausted says that a subnet has no free address.
var ErrExhausted = errors.New("no free address")

// ErrPortTaken says that a host port belongs to another pod.
var ErrPortTaken = errors.New("host port is taken")

// claims is the store of what belongs to which pod: addresses and host ports. All questions are answered from memory.
//
// On disk each address and each host port is one symbolic link, named as what is claimed, whose target names the pod.
// symlink(2) makes name and content in one step or not at all, and fails if the name exists, so whatever instant the
// process dies at, a claim is there as a whole or is not. Nothing is synced: after a power cut no pod is left either.
type claims struct {
	addressDir, portDir, subnetDir string

	mu sync.Mutex
	// pools are those that addresses are taken from, IPv4 first, and then former ones that pods still have addresses of.
	pools     []*pool
	addresses map[netip.Addr]string
	pods      map[string]*claim
}

// claim is what one pod has.
type claim struct {
	addresses []netip.Addr
	ports     []nat.Port
	// leaving says that the ports are being withdrawn: still the pod's, but not to be in the table any more.
	leaving bool
}

// openClaims reads the claims below dir, and which subnets there were.
func openClaims(dir string, subnets []netip.Prefix) (*claims, error) {
	c := &claims{
		addressDir: filepath.Join(dir, "addresses"), portDir: filepath.Join(dir, "ports"),
		subnetDir: filepath.Join(dir, "subnets"),
		addresses: map[netip.Addr]string{}, pods: map[string]*claim{},
	}
	for _, s := range subnets {
		c.pools = append(c.pools, newPool(s))
	}
	if err := readLinks(c.subnetDir, c.loadSubnet); err != nil {
		return nil, fmt.Errorf("read subnets: %w", err)
	}
	if err := c.recordSubnets(subnets); err != nil {
		return nil, err
	}
	if err := readLinks(c.addressDir, c.loadAddress); err != nil {
		return nil, fmt.Errorf("read address claims: %w", err)
	}
	if err := readLinks(c.portDir, c.loadPort); err != nil {
		return nil, fmt.Errorf("read host port claims: %w", err)
	}
	return c, nil
}

// readLinks makes the directory if need be and shows all links in it to load. What load refuses is removed: it is not
// ours to guess what it meant, and it would keep a name taken.
func readLinks(dir string, load func(name, target string) error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		target, err := os.Readlink(path)
		if err == nil {
			err = load(e.Name(), target)
		}
		if err == nil {
			continue
		}
		logrus.WithError(err).WithField("path", path).Warn("removing what is not a claim of a pod")
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

func (c *claims) loadAddress(name, id string) error {
	a, err := netip.ParseAddr(name)
	if err != nil {
		return err
	}
	c.hold(id, a)
	return nil
}

func (c *claims) loadPort(name, target string) error {
	id, p, err := parsePort(name, target)
	if err != nil {
		return err
	}
	c.pod(id).ports = append(c.pod(id).ports, p)
	return nil
}

func (c *claims) pod(id string) *claim {
	p := c.pods[id]
	if p == nil {
		p = &claim{}
		c.pods[id] = p
	}
	return p
}

// hold notes in memory that the address is the pod's. The IPv4 addresses of a pod precede the others: a directory
// lists them in no order.
func (c *claims) hold(id string, a netip.Addr) {
	c.addresses[a] = id
	p := c.pod(id)
	if a.Is4() {
		p.addresses = append([]netip.Addr{a}, p.addresses...)
	} else {
		p.addresses = append(p.addresses, a)
	}
	for _, pool := range c.pools {
		pool.took(a)
	}
}

// take claims an address of each subnet that the pod can use, and the host ports for these. On an error nothing
// remains claimed. The pod must have no claims.
func (c *claims) take(id string, useIPv6 bool, ports []HostPort) (claim, error) {
	got, err := c.reserve(id, useIPv6, ports)
	if err != nil {
		return claim{}, err
	}
	for _, a := range got.addresses {
		if err = os.Symlink(id, c.addressPath(a)); err != nil {
			break
		}
	}
	for _, p := range got.ports {
		if err == nil {
			err = os.Symlink(portTarget(id, p), c.portPath(p))
		}
	}
	if err != nil {
		return claim{}, errors.Join(fmt.Errorf("record claim of pod %s: %w", id, err), c.drop(id))
	}
	return got, nil
}

// reserve does take's part in memory.
func (c *claims) reserve(id string, useIPv6 bool, ports []HostPort) (claim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var free []netip.Addr
	for _, p := range c.pools {
		if p.former || p.prefix.Addr().Is6() && !useIPv6 {
			continue
		}
		a, ok := p.pick(c.taken)
		if !ok {
			return claim{}, fmt.Errorf("%w in subnet %s", ErrExhausted, p.prefix)
		}
		free = append(free, a)
	}
	if len(free) == 0 {
		return claim{}, errors.New("the pod has IPv6 disabled and the network has no IPv4 subnet")
	}
	wanted, err := c.resolve(ports, free)
	if err != nil {
		return claim{}, err
	}
	for _, a := range free {
		c.hold(id, a)
	}
	p := c.pod(id)
	p.ports = wanted
	return p.copy(), nil
}

// resolve makes the host ports for the addresses and refuses those that overlap with other ones.
func (c *claims) resolve(ports []HostPort, addresses []netip.Addr) ([]nat.Port, error) {
	var out []nat.Port
	for _, h := range ports {
		resolved, err := h.resolve(addresses)
		if err != nil {
			return nil, err
		}
		for _, p := range resolved {
			for id, other := range c.pods {
				if overlapsAny(p, other.ports) {
					return nil, fmt.Errorf("%w: %s by pod %s", ErrPortTaken, h, id)
				}
			}
			if overlapsAny(p, out) {
				return nil, fmt.Errorf("%w: %s is asked for twice by the pod", ErrPortTaken, h)
			}
			out = append(out, p)
		}
	}
	return out, nil
}

func overlapsAny(p nat.Port, others []nat.Port) bool {
	for _, o := range others {
		if p.Protocol == o.Protocol && p.HostPort == o.HostPort && p.HostIP.Is4() == o.HostIP.Is4() &&
			(p.HostIP == o.HostIP || p.HostIP.IsUnspecified() || o.HostIP.IsUnspecified()) {
			return true
		}
	}
	return false
}

// drop forgets all of a pod's claims; on disk first, so that an address can be claimed again once it is free there.
func (c *claims) drop(id string) error {
	held, ok := c.of(id)
	if !ok {
		return nil
	}
	var errs []error
	for _, p := range held.ports {
		errs = append(errs, removeIfThere(c.portPath(p)))
	}
	for _, a := range held.addresses {
		errs = append(errs, removeIfThere(c.addressPath(a)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget claims of pod %s: %w", id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range held.addresses {
		if c.addresses[a] != id {
			continue
		}
		delete(c.addresses, a)
		for _, p := range c.pools {
			p.gaveBack(a)
		}
	}
	delete(c.pods, id)
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// of is what the pod has.
func (c *claims) of(id string) (claim, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.pods[id]
	if !ok {
		return claim{}, false
	}
	return p.copy(), true
}

// ids lists the pods that have claims.
func (c *claims) ids() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for id := range c.pods {
		out = append(out, id)
	}
	return out
}

// empty tells that no pod has claims.
func (c *claims) empty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pods) == 0
}

// leave says that the pod's host ports are not to be published any more.
func (c *claims) leave(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pods[id]; p != nil {
		p.leaving = true
	}
}

// published lists the host ports of all pods that do not leave.
func (c *claims) published() []nat.Port {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []nat.Port
	for _, p := range c.pods {
		if !p.leaving {
			out = append(out, p.ports...)
		}
	}
	return out
}

func (c *claim) copy() claim {
	return claim{addresses: append([]netip.Addr(nil), c.addresses...), ports: append([]nat.Port(nil), c.ports...)}
}

func (c *claims) addressPath(a netip.Addr) string { return filepath.Join(c.addressDir, a.String()) }

// portPath names a host port: protocol number, port, host address.
func (c *claims) portPath(p nat.Port) string {
	return filepath.Join(c.portDir, fmt.Sprintf("%d-%d-%s", p.Protocol, p.HostPort, p.HostIP))
}

func portTarget(id string, p nat.Port) string {
	return fmt.Sprintf("%s/%d/%s", id, p.TargetPort, p.Target)
}

// parsePort reads what portPath and portTarget wrote.
func parsePort(name, target string) (id string, p nat.Port, err error) {
	key, value := strings.SplitN(name, "-", 3), strings.Split(target, "/")
	if len(key) != 3 || len(value) != 3 || value[0] == "" {
		return "", p, fmt.Errorf("invalid host port claim %q -> %q", name, target)
	}
	protocol, err1 := strconv.ParseUint(key[0], 10, 8)
	hostPort, err2 := strconv.ParseUint(key[1], 10, 16)
	hostIP, err3 := netip.ParseAddr(key[2])
	targetPort, err4 := strconv.ParseUint(value[1], 10, 16)
	targetIP, err5 := netip.ParseAddr(value[2])
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return "", p, fmt.Errorf("invalid host port claim %q -> %q: %w", name, target, err)
	}
	if hostIP.Is4() != targetIP.Is4() || hostIP.Is4In6() || targetIP.Is4In6() || hostIP.Zone() != "" || targetIP.Zone() != "" {
		return "", p, fmt.Errorf("invalid host port claim %q -> %q: addresses do not fit", name, target)
	}
	return value[0], nat.Port{
		Protocol: uint8(protocol), HostIP: hostIP, HostPort: uint16(hostPort), Target: targetIP, TargetPort: uint16(targetPort),
	}, nil
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}
