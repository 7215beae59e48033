// Package shape limits the traffic of a pod at the node's end of its link, where nothing in the pod can undo it.
//
// Traffic to the pod leaves the node by that link: a token bucket (tc-tbf(8)) is the link's queue. Traffic from the pod
// comes in by it, and the kernel queues nothing that comes in; so it is redirected (tc-mirred(8)) to an intermediate
// device (ifb) with a token bucket, and goes on from there. That is what the CNI bandwidth plugin does. The other way, to
// drop what is too much (tc-police(8)), needs no device, but TCP, which sees losses instead of a slow link, gets far less
// than the rate, and kernels without act_police are met.
//
// What is on the pod's link goes with it; the device is the caller's to name, and to remove as any other link.
package shape

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrUnsupported says that the kernel cannot limit traffic.
var ErrUnsupported = errors.New("the kernel cannot limit bandwidth")

// Rates are limits in bits per second, as the pod sees it; 0 is none.
type Rates struct {
	Ingress, Egress uint64
}

const (
	// burstTime and queueTime are how much traffic may pass at once after a pause, and how much waits before the rest is
	// dropped, as the time that it takes at the rate. Bursts are short, so that a rate is what a second brings.
	burstTime, queueTime = 0.1, 0.05
	// leastBurst lets a few packets through at any rate. Larger ones that are to be split later (GSO) are split before.
	leastBurst = 16 << 10
	// longestBurst keeps the time that the burst takes within 32 bits of the kernel's ticks of 64 ns.
	longestBurst = 200.0
)

// Apply limits the link of that name, which must have no limits yet. device is the name for the intermediate device; one
// that is left over is replaced. After an error there may be a device all the same. ErrUnsupported.
func Apply(h *netlink.Handle, link, device string, r Rates) error {
	if r == (Rates{}) {
		return nil
	}
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("look for link %s: %w", link, err)
	}
	if r.Ingress != 0 {
		if err := limit(h, l, r.Ingress); err != nil {
			return fmt.Errorf("limit traffic to the pod: %w", err)
		}
	}
	if r.Egress != 0 {
		if err := redirect(h, l, device, r.Egress); err != nil {
			return fmt.Errorf("limit traffic from the pod: %w", err)
		}
	}
	return nil
}

// limit makes a token bucket the queue of a link.
func limit(h *netlink.Handle, l netlink.Link, rate uint64) error {
	err := h.QdiscReplace(bucket(l, rate))
	return explain(err, "sch_tbf", "set the queue of "+l.Attrs().Name)
}

// bucket is the token bucket of a link for a rate in bits per second.
func bucket(l netlink.Link, rate uint64) *netlink.Tbf {
	perSecond := math.Ceil(float64(rate) / 8)
	burst := max(perSecond*burstTime, leastBurst, 2*float64(l.Attrs().MTU))
	burst = min(burst, perSecond*longestBurst, math.MaxUint32)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       uint64(perSecond),
		Buffer:     netlink.Xmittime(uint64(perSecond), uint32(burst)),
		Limit:      uint32(min(burst+perSecond*queueTime, math.MaxUint32)),
	}
}

// redirect sends what comes in by a link through a device with a token bucket.
func redirect(h *netlink.Handle, l netlink.Link, device string, rate uint64) error {
	ifb, err := makeDevice(h, device, l.Attrs().MTU)
	if err != nil {
		return err
	}
	if err := limit(h, ifb, rate); err != nil {
		return err
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := h.QdiscReplace(ingress); err != nil {
		return explain(err, "sch_ingress", "hook into what comes in by "+l.Attrs().Name)
	}
	all := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(ifb.Attrs().Index)},
	}
	return explain(h.FilterAdd(all), "cls_u32 and act_mirred", "redirect what comes in by "+l.Attrs().Name)
}

// makeDevice makes an intermediate device that is up.
func makeDevice(h *netlink.Handle, name string, mtu int) (netlink.Link, error) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, mtu
	err := h.LinkAdd(&netlink.Ifb{LinkAttrs: a})
	if errors.Is(err, unix.EEXIST) {
		if err = remove(h, name); err == nil {
			err = h.LinkAdd(&netlink.Ifb{LinkAttrs: a})
		}
	}
	if err != nil {
		return nil, explain(err, "ifb", "make device "+name)
	}
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err != nil {
		return nil, fmt.Errorf("switch on device %s: %w", name, err)
	}
	return link, nil
}

// remove removes an intermediate device; it is no error if there is none.
func remove(h *netlink.Handle, device string) error {
	link, err := h.LinkByName(device)
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device %s: %w", device, err)
	}
	return nil
}

// Check returns an error unless the limits are as Apply has set them.
func Check(h *netlink.Handle, link, device string, r Rates) error {
	for _, c := range []struct {
		name string
		rate uint64
	}{{link, r.Ingress}, {device, r.Egress}} {
		if c.rate == 0 {
			continue
		}
		l, err := h.LinkByName(c.name)
		if err != nil {
			return fmt.Errorf("look for link %s: %w", c.name, err)
		}
		queues, err := h.QdiscList(l)
		if err != nil {
			return fmt.Errorf("list queues of link %s: %w", c.name, err)
		}
		want := bucket(l, c.rate).Rate
		if len(queues) == 0 || queues[0].Type() != "tbf" || queues[0].(*netlink.Tbf).Rate != want {
			return fmt.Errorf("link %s is not limited to %d bytes a second", c.name, want)
		}
	}
	return nil
}

// explain tells what the kernel lacks, as it answers for an unknown kind of queue, filter, action or device.
func explain(err error, needs, doing string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w: %w: it needs %s", doing, ErrUnsupported, err, needs)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
