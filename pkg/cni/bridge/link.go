package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// vethPrefix starts the names of the node's ends of pods' links.
	vethPrefix = "criv"
	// devicePrefix starts those of the devices that limit what pods send (package shape).
	devicePrefix = "crif"
	// bridgeAlias tells a bridge that we made, and may remove, from one that was there.
	bridgeAlias = "criserver built-in pod network"
	defaultMTU  = 1500
	// carrierLimit is long enough for the kernel's work queue under any load.
	carrierLimit = 5 * time.Second
)

// bridgeLinkLocal is what the node asks pods for their hardware address from. The kernel would give the bridge one too,
// but some time after the first pod's link is up.
var bridgeLinkLocal = netip.MustParsePrefix("fe80::1/64")

// vethName is the name of the node's end of a pod's link. It follows from the pod's id, so that the link can be removed
// without a record of it; 15 characters are the most that the kernel takes.
func vethName(id string) string { return linkName(vethPrefix, id) }

// deviceName is the name of the device that limits what a pod sends.
func deviceName(id string) string { return linkName(devicePrefix, id) }

func linkName(prefix, id string) string {
	sum := sha256.Sum256([]byte(id))
	return prefix + hex.EncodeToString(sum[:])[:unix.IFNAMSIZ-1-len(prefix)]
}

// macOf is the hardware address of the interface that has an address. As it follows from the address, neighbours that
// remember an address's former owner reach its next one.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}

// links makes the node's side of the network. Its methods but those for one veth are not
// to be called at the same time.
type links struct {
	*netlink.Handle
	name    string
	mtu     int
	subnets []netip.Prefix
	reaper  *reaper

	// made is the index of the bridge that is known to be as it should.
	made int
}

// ensureBridge makes the bridge if it is not there. A bridge made before is only looked for, unless thorough is set:
// then its addresses and switches are set again. ours gives what tells a
// pod's link by its name; it is called when that is needed.
// The bridge's attributes are returned.
func (l *links) ensureBridge(ctx context.Context, thorough bool, ours func() func(name string) bool) (*netlink.LinkAttrs, error) {
	link, err := l.LinkByName(l.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if link, err = l.makeBridge(); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look for bridge %s: %w", l.name, err)
	}
	a := link.Attrs()
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("the name %s of the bridge is taken by an interface of type %s", l.name, link.Type())
	}
	if a.Index == l.made && a.Flags&net.FlagUp != 0 && !thorough {
		return a, nil
	}
	if err := l.configureBridge(ctx, link); err != nil {
		return nil, err
	}
	if err := l.attach(link, ours()); err != nil {
		return nil, err
	}
	l.made = a.Index
	return a, nil
}

func (l *links) makeBridge() (netlink.Link, error) {
	a := netlink.NewLinkAttrs()
	a.Name = l.name
	a.MTU = l.mtu
	if a.MTU == 0 {
		var err error
		if a.MTU, err = l.uplinkMTU(); err != nil {
			return nil, err
		}
	}
	// A bridge without an address of its own takes the lowest of its ports' and changes it as they come and go.
	a.HardwareAddr = macOf(gateway(l.subnets[0]))
	if err := l.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", l.name, err)
	}
	link, err := l.LinkByName(l.name)
	if err != nil {
		return nil, err
	}
	if err := l.LinkSetAlias(link, bridgeAlias); err != nil {
		return nil, fmt.Errorf("label bridge %s: %w", l.name, err)
	}
	return link, nil
}

// uplinkMTU is the MTU of the interface that the default route leaves by: a bridge with a larger one would send
// packets that the node has to refuse or fragment.
func (l *links) uplinkMTU() (int, error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := l.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return 0, fmt.Errorf("look for the default route: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 {
				continue
			}
			if link, err := l.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU > 0 {
				return link.Attrs().MTU, nil
			}
		}
	}
	return defaultMTU, nil
}

// configureBridge sets what the bridge needs; it changes nothing that is right.
func (l *links) configureBridge(ctx context.Context, link netlink.Link) error {
	useIPv6 := false
	for _, s := range l.subnets {
		useIPv6 = useIPv6 || s.Addr().Is6()
	}
	if err := forward(useIPv6); err != nil {
		return err
	}
	// See package nat for what route_localnet is for and what guards it.
	if err := setSysctl("ipv4/conf/"+l.name+"/route_localnet", "1"); err != nil {
		return err
	}
	if useIPv6 {
		if err := quietIPv6(l.name); err != nil {
			return err
		}
	}
	var addresses []netip.Prefix
	for _, s := range l.subnets {
		addresses = append(addresses, netip.PrefixFrom(gateway(s), s.Bits()))
	}
	if useIPv6 {
		addresses = append(addresses, bridgeLinkLocal)
	}
	for _, p := range addresses {
		if err := l.AddrReplace(link, address(p)); err != nil {
			return fmt.Errorf("give bridge %s address %s: %w", l.name, p, err)
		}
	}
	if err := l.LinkSetUp(link); err != nil {
		return fmt.Errorf("switch on bridge %s: %w", l.name, err)
	}
	return awaitNeighbours(ctx, l.name, addresses)
}

// address is ready for use at once: duplicate address detection would hold it back for a second or more, and the
// claims rule duplicates out.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// removeBridge removes the bridge if we made it.
func (l *links) removeBridge() error {
	l.made = 0
	link, err := l.LinkByName(l.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for bridge %s: %w", l.name, err)
	}
	if link.Attrs().Alias != bridgeAlias {
		return nil
	}
	if err := l.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove bridge %s: %w", l.name, err)
	}
	return nil
}

// addVeth makes a pod's link, the node's end up and attached to the bridge, the other end down in the pod's network
// namespace. A link of the same name, left over by a crash, is replaced.
func (l *links) addVeth(v veth) error {
	err := newVeth(v)
	if errors.Is(err, unix.EEXIST) {
		if err := l.reaper.remove(v.name); err != nil {
			return err
		}
		if err = newVeth(v); errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make link %s: %w: the pod has an interface %s already", v.name, err, v.peerName)
		}
	}
	if err != nil {
		return fmt.Errorf("make link %s: %w", v.name, err)
	}
	return nil
}

// finishVeth waits until the bridge forwards a link whose pod's end was just switched on, and finishes the node's end.
//
// The bridge has a carrier of its own, from its first port on, and anew when it had none in between. Until the kernel has
// seen to that, it drops what the node sends into the bridge.
func (l *links) finishVeth(ctx context.Context, name string) error {
	link, err := l.awaitCarrier(ctx, name)
	if err != nil {
		return err
	}
	if err := l.setHairpin(link); err != nil {
		return err
	}
	_, err = l.awaitCarrier(ctx, l.name)
	return err
}

// awaitCarrier waits until a link is up, but for a bridge that is not ours: with the spanning tree protocol that takes long.
//
// The kernel tells of a carrier in a work queue. Until then it drops all packets of the link, and with the first one, a
// neighbour's solicitation, a second passes. To be asked for the one link makes the kernel do it now (rtnl_getlink calls
// linkwatch_sync_dev since Linux 6.2); the loop is for older ones.
func (l *links) awaitCarrier(ctx context.Context, name string) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, carrierLimit)
	defer cancel()
	for {
		link, err := l.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("look for link %s: %w", name, err)
		}
		a := link.Attrs()
		if foreign := name == l.name && a.Alias != bridgeAlias; foreign || a.OperState == netlink.OperUp {
			return link, nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the carrier of link %s: %w", name, ctx.Err())
		}
	}
}

// setHairpin lets packets leave by the port of the bridge that they came from: with br_netfilter on, a pod's packet
// that is translated to the pod itself does.
func (l *links) setHairpin(link netlink.Link) error {
	if err := l.LinkSetHairpin(link, true); err != nil {
		return fmt.Errorf("set hairpin mode of link %s: %w", link.Attrs().Name, err)
	}
	return nil
}

type veth struct {
	name     string
	bridge   *netlink.LinkAttrs
	peerName string
	peerMAC  net.HardwareAddr
	peerNS   int
}

// newVeth makes, attaches and switches on in one request, which the netlink package would split in four.
func newVeth(v veth) error {
	mtu := nl.Uint32Attr(uint32(v.bridge.MTU))
	// One queue each: since Linux 5.13 a veth has one per CPU, which costs memory and serves only XDP.
	queues := nl.Uint32Attr(1)

	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.peerName))
	peer.AddRtAttr(unix.IFLA_ADDRESS, v.peerMAC)
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, queues)
	peer.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, queues)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.peerNS)))

	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, mtu))
	req.AddData(nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, queues))
	req.AddData(nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, queues))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.bridge.Index))))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// veths lists the node's ends of pods' links that are attached to an interface, 0 for those that are to none.
func (l *links) veths(master int) ([]netlink.Link, error) {
	all, err := l.LinkList()
	// The kernel says so if links changed during the listing; those that did not are all in it.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []netlink.Link
	for _, link := range all {
		if a := link.Attrs(); a.MasterIndex == master && strings.HasPrefix(a.Name, vethPrefix) && link.Type() == "veth" {
			out = append(out, link)
		}
	}
	return out, nil
}

// attach puts links of pods back on a bridge that was made again: the kernel detached them as the old one went.
func (l *links) attach(bridge netlink.Link, ours func(name string) bool) error {
	detached, err := l.veths(0)
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range detached {
		if !ours(link.Attrs().Name) {
			continue
		}
		if err := l.LinkSetMasterByIndex(link, bridge.Attrs().Index); err != nil {
			errs = append(errs, fmt.Errorf("attach link %s: %w", link.Attrs().Name, err))
			continue
		}
		errs = append(errs, l.setHairpin(link))
	}
	return errors.Join(errs...)
}
