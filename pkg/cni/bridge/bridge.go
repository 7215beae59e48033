// Package bridge is the built-in pod network: a Linux bridge on the node, a veth pair to each pod, addresses from
// subnets of the node's own, masquerade and host ports. It works through netlink and nftables and executes no program.
//
// # What is on the machine
//
// The bridge and the nftables table (package nat) are made for the first pod, are made again if somebody removes them,
// and go with the last pod. Two sysctls that make the node a router are switched on and stay on. Which address and
// which host port belongs to which pod is on disk, and what the kernel holds follows from that alone: the names of a
// pod's link and of the device that limits what it sends (package shape) from its id, its hardware address from its
// address. So a pod's network can be taken down at any time, by another process, with its namespace long gone.
//
// # Subnets
//
// The subnets may change. Pods keep the addresses that they have, so bridge and table serve former subnets too, until
// no pod has an address of them. Which ones there are is on disk as well, and each before an address of it is given out.
//
// # Order
//
// Add claims on disk, then makes; Del removes, then gives the claim back. An address thus belongs to nobody else while
// anything of it is left in the kernel.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"criserver/pkg/cni/nat"
	"criserver/pkg/cni/netns"
	"criserver/pkg/cni/shape"
)

// Config describes the network.
type Config struct {
	// Name is that of the bridge interface, Table that of the nftables table.
	Name, Table string
	// Subnets are those of the pods to come; the bridge has the first address of each. At most one of each family, IPv4 first if both.
	// IPv6 is left out if it is disabled on the node.
	Subnets []netip.Prefix
	// MTU of the links; 0 takes that of the default route's interface.
	MTU int
	// Dir keeps the claims. It must outlive the process and may be lost with a reboot.
	Dir string
	// Linger is how long bridge and table stay after the last pod, until Repair or Close removes them: where pods come
	// and go one by one, making them anew would more than double the time of each. 0 removes them with the last pod.
	Linger time.Duration
}

// Attachment is a pod's wish.
type Attachment struct {
	// ID names the pod; NetNS is the path of its network namespace; IfName its interface there.
	ID, NetNS, IfName string
	// DefaultRoute leads the pod's traffic to the rest of the world through the bridge.
	DefaultRoute bool
	Ports        []HostPort
	Rates        shape.Rates
}

// Result is what a pod got.
type Result struct {
	// Addresses of the pod, with the length of their subnet, IPv4 first. The gateway is the first of the subnet.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	// Bridge and HostIfName are the names of the interfaces on the node.
	Bridge, HostIfName string
	// MAC is that of the pod's interface.
	MAC string
}

// Bridge is the network. Its methods may be called at the same time, but for one pod one after the other.
type Bridge struct {
	claims *claims
	table  *nat.Table
	links  *links
	// base is held by who makes, changes or removes the bridge or the table. It is a channel as its wait ends with the
	// caller's context.
	base chan struct{}
	// adopted says that the table is one that this process has made of the subnets that there are now.
	adopted bool
	linger  time.Duration
	// used is when the last pod was taken down, in nanoseconds of Unix time.
	used atomic.Int64
}

// Open reads the claims. Nothing is made in the kernel before the first Add.
func Open(c Config) (*Bridge, error) {
	if c.Name == "" || len(c.Name) >= unix.IFNAMSIZ || strings.ContainsAny(c.Name, "/: \t\n") {
		return nil, fmt.Errorf("invalid bridge name %q", c.Name)
	}
	subnets, err := usableSubnets(c.Subnets)
	if err != nil {
		return nil, err
	}
	claims, err := openClaims(c.Dir, subnets)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	all := claims.subnets()
	return &Bridge{
		claims: claims,
		table:  nat.New(c.Table, c.Name, all),
		links:  &links{Handle: h, name: c.Name, mtu: c.MTU, subnets: all, reaper: newReaper(h)},
		base:   make(chan struct{}, 1),
		linger: c.Linger,
	}, nil
}

func usableSubnets(all []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	var have4, have6 bool
	for _, s := range all {
		if err := checkSubnet(s); err != nil {
			return nil, err
		}
		family := &have6
		if s.Addr().Is4() {
			family = &have4
		}
		if *family {
			return nil, fmt.Errorf("subnet %s: only one subnet of a family is possible", s)
		}
		*family = true
		if s.Addr().Is4() || ipv6Enabled() {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the built-in network has no usable subnet")
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return out, nil
}

// Close releases the process's handles; the network stays.
func (b *Bridge) Close(ctx context.Context) error {
	err := b.removeBase(ctx)
	b.links.Close()
	return err
}

// Add connects a pod. If the pod has claims already, from an Add that was cut off, they are given back first. After an
// error Del is due.
func (b *Bridge) Add(ctx context.Context, a Attachment) (Result, error) {
	if _, ok := b.claims.of(a.ID); ok {
		if err := b.Del(ctx, a.ID); err != nil {
			return Result{}, fmt.Errorf("take down earlier network: %w", err)
		}
	}
	useIPv6, err := podUsesIPv6(a.NetNS)
	if err != nil {
		return Result{}, err
	}
	got, err := b.claims.take(a.ID, useIPv6, a.Ports)
	if err != nil {
		return Result{}, err
	}
	bridge, err := b.publish(ctx, got.ports)
	if err != nil {
		return Result{}, err
	}
	result := b.result(a.ID, got.addresses)
	if err := b.connect(ctx, a, bridge, result.Addresses); err != nil {
		return Result{}, err
	}
	return result, nil
}

func (b *Bridge) result(id string, addresses []netip.Addr) Result {
	r := Result{Bridge: b.links.name, HostIfName: vethName(id), MAC: macOf(addresses[0]).String()}
	for _, a := range addresses {
		if s, ok := b.claims.subnet(a); ok {
			r.Addresses = append(r.Addresses, netip.PrefixFrom(a, s.Bits()))
			r.Gateways = append(r.Gateways, gateway(s))
		}
	}
	return r
}

// publish makes the bridge and the table if need be, and the host ports, which are claimed already.
func (b *Bridge) publish(ctx context.Context, ports []nat.Port) (*netlink.LinkAttrs, error) {
	if err := b.lockBase(ctx); err != nil {
		return nil, err
	}
	defer b.unlockBase()
	if !b.adopted {
		if err := b.dropFormer(); err != nil {
			return nil, err
		}
	}
	bridge, err := b.links.ensureBridge(ctx, false, b.ownVeths)
	if err != nil {
		return nil, err
	}
	there, err := b.table.Exists()
	if err != nil {
		return nil, err
	}
	replace := !there || !b.adopted
	if !replace && len(ports) > 0 {
		err = b.table.Add(ports)
		replace = errors.Is(err, nat.ErrMissing)
	}
	if replace {
		err = b.replaceTable()
	}
	return bridge, err
}

// Del takes down a pod's network; it is no error if there is none.
func (b *Bridge) Del(ctx context.Context, id string) error {
	held, known := b.claims.of(id)
	if !known {
		return b.links.reaper.remove(vethName(id), deviceName(id))
	}
	var errs []error
	if len(held.ports) > 0 {
		errs = append(errs, b.unpublish(ctx, id, held.ports))
	}
	errs = append(errs, b.links.reaper.remove(vethName(id), deviceName(id)))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := b.claims.drop(id); err != nil {
		return err
	}
	b.used.Store(time.Now().UnixNano())
	return b.removeIdle(ctx)
}

func (b *Bridge) unpublish(ctx context.Context, id string, ports []nat.Port) error {
	if err := b.lockBase(ctx); err != nil {
		return err
	}
	defer b.unlockBase()
	b.claims.leave(id) // whoever makes the table anew before the claims are gone
	err := b.table.Remove(ports)
	if errors.Is(err, nat.ErrMissing) {
		err = b.replaceTable()
	}
	return err
}

// removeIdle removes bridge and table when no pod has been there for a while.
func (b *Bridge) removeIdle(ctx context.Context) error {
	if time.Since(time.Unix(0, b.used.Load())) < b.linger {
		return nil
	}
	return b.removeBase(ctx)
}

// removeBase removes bridge and table when no pod is left. An Add in flight has its claims by then, or will come to
// publish, which makes them again.
func (b *Bridge) removeBase(ctx context.Context) error {
	if !b.claims.empty() {
		return nil
	}
	if err := b.lockBase(ctx); err != nil {
		return err
	}
	defer b.unlockBase()
	if !b.claims.empty() {
		return nil
	}
	return errors.Join(b.table.Delete(), b.links.removeBridge(), b.dropFormer())
}

// Pods lists the pods that have claims.
func (b *Bridge) Pods() []string { return b.claims.ids() }

// removeStrays removes links of pods without claims. The claims are read after the links: an Add claims first.
func (b *Bridge) removeStrays() error {
	bridge, err := b.links.LinkByName(b.links.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for bridge %s: %w", b.links.name, err)
	}
	found, err := b.links.veths(bridge.Attrs().Index)
	if err != nil {
		return err
	}
	ours := b.ownVeths()
	var errs []error
	for _, link := range found {
		if name := link.Attrs().Name; !ours(name) {
			errs = append(errs, b.links.reaper.remove(name))
		}
	}
	return errors.Join(errs...)
}

// ownVeths tells by its name whether a link is that of a pod with claims at the time of the call of ownVeths.
func (b *Bridge) ownVeths() func(name string) bool {
	names := map[string]bool{}
	for _, id := range b.claims.ids() {
		names[vethName(id)] = true
	}
	return func(name string) bool { return names[name] }
}

// Repair restores what somebody removed of the bridge, of the pods' links to it and of the table, and removes links of
// pods that are unknown, and what is left of former subnets that no pod is in any more. Without a pod it removes bridge and
// table, once they have lingered.
func (b *Bridge) Repair(ctx context.Context) error {
	strays := b.removeStrays()
	if b.claims.empty() {
		return errors.Join(strays, b.removeIdle(ctx))
	}
	if err := b.lockBase(ctx); err != nil {
		return errors.Join(strays, err)
	}
	defer b.unlockBase()
	if b.claims.empty() {
		return strays // the last pod's Del is about to remove them
	}
	_, err := b.links.ensureBridge(ctx, true, b.ownVeths)
	return errors.Join(strays, err, b.dropFormer(), b.repairTable())
}

func (b *Bridge) repairTable() error {
	ports := b.claims.published()
	complete, err := b.table.Complete(ports)
	if err != nil || complete && b.adopted {
		return err
	}
	return b.replaceTable()
}

// Check returns an error unless the pod is connected as Add left it.
func (b *Bridge) Check(_ context.Context, a Attachment) error {
	held, ok := b.claims.of(a.ID)
	if !ok {
		return fmt.Errorf("pod %s has no address", a.ID)
	}
	if _, err := b.links.LinkByName(vethName(a.ID)); err != nil {
		return fmt.Errorf("look for link %s: %w", vethName(a.ID), err)
	}
	if err := shape.Check(b.links.Handle, vethName(a.ID), deviceName(a.ID), a.Rates); err != nil {
		return err
	}
	return netns.Do(a.NetNS, func(h *netlink.Handle) error { return checkPod(h, a.IfName, held.addresses) })
}

func (b *Bridge) lockBase(ctx context.Context) error {
	select {
	case b.base <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the bridge: %w", ctx.Err())
	}
}

func (b *Bridge) unlockBase() { <-b.base }
