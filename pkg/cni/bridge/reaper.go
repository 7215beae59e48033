package bridge

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// reapGroup is the interface group of links that are being removed together; a number that nobody else should use.
const reapGroup = 0x63726977

// reaper removes links. The kernel waits for an RCU grace period, some 20 ms, for each removal, in which nobody else
// can change the network. So what is to be removed meanwhile is gathered, and removed by one request.
type reaper struct {
	handle *netlink.Handle
	// turn is held by who removes. Not a mutex, as it is held while the kernel waits.
	turn chan struct{}

	mu      sync.Mutex
	waiting []*removal
}

// removal is a link to remove. But for name it belongs to who has the turn.
type removal struct {
	name string
	done bool
	err  error
}

func newReaper(h *netlink.Handle) *reaper {
	return &reaper{handle: h, turn: make(chan struct{}, 1)}
}

// remove removes links, with both ends of a veth; it is no error if there is none.
func (r *reaper) remove(names ...string) error {
	mine := make([]*removal, len(names))
	for i, name := range names {
		mine[i] = &removal{name: name}
	}
	r.mu.Lock()
	r.waiting = append(r.waiting, mine...)
	r.mu.Unlock()

	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	if !mine[0].done { // nobody took them along
		r.mu.Lock()
		batch := r.waiting
		r.waiting = nil
		r.mu.Unlock()
		r.removeAll(batch)
	}
	var errs []error
	for _, m := range mine {
		if m.err != nil {
			errs = append(errs, fmt.Errorf("remove link %s: %w", m.name, m.err))
		}
	}
	return errors.Join(errs...)
}

func (r *reaper) removeAll(batch []*removal) {
	links := map[*removal]netlink.Link{}
	for _, b := range batch {
		b.done = true
		link, err := r.handle.LinkByName(b.name)
		switch {
		case err == nil:
			links[b] = link
		case !errors.As(err, &netlink.LinkNotFoundError{}):
			b.err = err
		}
	}
	if len(links) > 1 && r.removeTogether(links) == nil {
		return
	}
	for b, link := range links {
		if err := r.handle.LinkDel(link); err != nil && !gone(err) {
			b.err = err
		}
	}
}

// removeTogether returns an error if a link may be left.
func (r *reaper) removeTogether(links map[*removal]netlink.Link) error {
	for _, link := range links {
		if err := r.handle.LinkSetGroup(link, reapGroup); err != nil && !gone(err) {
			return err
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(reapGroup)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !gone(err) {
		return err
	}
	return nil
}

// gone tells that a link went on its own, as a veth does with the namespace of its other end.
func gone(err error) bool { return errors.Is(err, unix.ENODEV) }
