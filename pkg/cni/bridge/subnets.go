package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrGatewayTaken says that subnets cannot be taken as a pod has the address that the bridge needs.
var ErrGatewayTaken = errors.New("the bridge's address is a pod's")

// CheckSubnets refuses what cannot be the subnets of a network, on this node.
func CheckSubnets(subnets []netip.Prefix) error {
	_, err := usableSubnets(subnets)
	return err
}

// SetSubnets makes these the subnets of the pods to come. Pods that are there keep their addresses: their subnets are
// served, by bridge and table, as long as one has. ErrGatewayTaken.
func (b *Bridge) SetSubnets(ctx context.Context, subnets []netip.Prefix) error {
	usable, err := usableSubnets(subnets)
	if err != nil {
		return err
	}
	if err := b.lockBase(ctx); err != nil {
		return err
	}
	defer b.unlockBase()
	if err := b.claims.change(usable); err != nil {
		return err
	}
	return b.followSubnets(ctx)
}

// followSubnets makes bridge and table those of the subnets that there are now. Its caller holds base.
func (b *Bridge) followSubnets(ctx context.Context) error {
	b.setSubnets(b.claims.subnets())
	if b.claims.empty() {
		// An Add that comes makes them anew.
		return errors.Join(b.table.Delete(), b.links.removeBridge(), b.dropFormer())
	}
	if _, err := b.links.ensureBridge(ctx, true, b.ownVeths); err != nil {
		return err
	}
	return errors.Join(b.replaceTable(), b.dropFormer())
}

// setSubnets makes known which there are now. The table is not that of them until it is made anew.
func (b *Bridge) setSubnets(all []netip.Prefix) {
	b.links.subnets, b.links.made = all, 0
	b.table.SetSubnets(all)
	b.adopted = false
}

// dropFormer ends the service for former subnets that no pod has an address of. What cannot be ended stays known, and is tried
// again. Its caller holds base.
func (b *Bridge) dropFormer() error {
	unused := b.claims.unusedSubnets()
	if len(unused) == 0 {
		return nil
	}
	var errs []error
	for _, s := range unused {
		err := b.links.removeAddress(netip.PrefixFrom(gateway(s), s.Bits()))
		if err == nil {
			err = b.claims.forgetSubnet(s)
		}
		errs = append(errs, err)
	}
	b.setSubnets(b.claims.subnets())
	if there, err := b.table.Exists(); err != nil || there {
		errs = append(errs, err, b.replaceTable())
	}
	return errors.Join(errs...)
}

// replaceTable makes the table, or makes it anew.
func (b *Bridge) replaceTable() error {
	if err := b.table.Replace(b.claims.published()); err != nil {
		return err
	}
	b.adopted = true
	return nil
}

// removeAddress takes an address from the bridge; it is no error if it has none, or there is no bridge.
func (l *links) removeAddress(p netip.Prefix) error {
	link, err := l.LinkByName(l.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = l.AddrDel(link, address(p))
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !gone(err) {
		return fmt.Errorf("take address %s from bridge %s: %w", p, l.name, err)
	}
	return nil
}

// change makes subnets those that addresses are taken from, and those before former ones.
func (c *claims) change(subnets []netip.Prefix) error {
	if err := c.recordSubnets(subnets); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range subnets {
		if id := c.addresses[gateway(s)]; id != "" {
			return fmt.Errorf("subnet %s: %w: %s of pod %s; it can be taken when that pod is gone", s, ErrGatewayTaken, gateway(s), id)
		}
	}
	var pools []*pool
	for _, s := range subnets {
		i := slices.IndexFunc(c.pools, func(p *pool) bool { return p.prefix == s })
		if i >= 0 {
			c.pools[i].former = false
			pools = append(pools, c.pools[i])
			continue
		}
		p := newPool(s)
		for a := range c.addresses {
			p.took(a)
		}
		p.cursor = p.gateway
		pools = append(pools, p)
	}
	for _, p := range c.pools {
		if !slices.Contains(pools, p) {
			p.former = true
			pools = append(pools, p)
		}
	}
	c.pools = pools
	return nil
}

// taken tells whether no pod can have the address. The owner's lock is held.
func (c *claims) taken(a netip.Addr) bool {
	return c.addresses[a] != "" || slices.ContainsFunc(c.pools, func(p *pool) bool { return p.gateway == a })
}

// subnets are all that are to be served, those for new pods first.
func (c *claims) subnets() []netip.Prefix {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []netip.Prefix
	for _, p := range c.pools {
		out = append(out, p.prefix)
	}
	return out
}

// subnet is that of an address of a pod.
func (c *claims) subnet(a netip.Addr) (netip.Prefix, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pools {
		if p.prefix.Contains(a) {
			return p.prefix, true
		}
	}
	return netip.Prefix{}, false
}

// unusedSubnets are the former ones that no pod has an address of.
func (c *claims) unusedSubnets() (unused []netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pools {
		if p.former && p.used == 0 {
			unused = append(unused, p.prefix)
		}
	}
	return unused
}

// A subnet is recorded before an address of it is taken, so that its length and gateway are known as long as a pod needs
// them, whatever is configured by then: a link of its name, with "_" for "/", that leads to "subnet".

func (c *claims) subnetPath(s netip.Prefix) string {
	return filepath.Join(c.subnetDir, strings.Replace(s.String(), "/", "_", 1))
}

func (c *claims) recordSubnets(subnets []netip.Prefix) error {
	for _, s := range subnets {
		if err := os.Symlink("subnet", c.subnetPath(s)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("record subnet %s: %w", s, err)
		}
	}
	return nil
}

func (c *claims) forgetSubnet(s netip.Prefix) error {
	if err := removeIfThere(c.subnetPath(s)); err != nil {
		return fmt.Errorf("forget subnet %s: %w", s, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pools = slices.DeleteFunc(c.pools, func(p *pool) bool { return p.prefix == s })
	return nil
}

func (c *claims) loadSubnet(name, _ string) error {
	s, err := netip.ParsePrefix(strings.Replace(name, "_", "/", 1))
	if err == nil {
		err = checkSubnet(s)
	}
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(c.pools, func(p *pool) bool { return p.prefix == s })
	if !known && (s.Addr().Is4() || ipv6Enabled()) {
		p := newPool(s)
		p.former = true
		c.pools = append(c.pools, p)
	}
	return nil
}
