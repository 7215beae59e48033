package shape

import (
	"errors"
	"math"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel's fields have 32 bits; Kubernetes' rates are from 1 kbit/s to 1 Pbit/s.
func TestBucketFits(t *testing.T) {
	for _, mtu := range []int{1280, 1500, 9000, 65535} {
		l := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{MTU: mtu}}
		for rate := uint64(1000); rate <= 1e15; rate *= 10 {
			b := bucket(l, rate)
			if b.Rate != rate/8 {
				t.Errorf("rate %d: %d bytes a second", rate, b.Rate)
			}
			seconds := float64(b.Buffer) * 64e-9 // a tick
			burst := seconds * float64(b.Rate)
			if burst < 0.9*math.Min(float64(b.Rate)*longestBurst, math.Max(leastBurst, 2*float64(mtu))) || burst > math.MaxUint32*1.1 {
				t.Errorf("rate %d, MTU %d: a burst of %.0f bytes", rate, mtu, burst)
			}
			if float64(b.Limit) < 0.99*burst && b.Limit != math.MaxUint32 {
				t.Errorf("rate %d, MTU %d: a queue of %d bytes is less than a burst of %.0f", rate, mtu, b.Limit, burst)
			}
		}
	}
}

func TestExplain(t *testing.T) {
	for _, err := range []error{unix.ENOENT, unix.EOPNOTSUPP} {
		if got := explain(err, "ifb", "make device"); !errors.Is(got, ErrUnsupported) || !errors.Is(got, err) {
			t.Errorf("%v: got %v", err, got)
		}
	}
	if got := explain(unix.EBUSY, "ifb", "make device"); errors.Is(got, ErrUnsupported) || !errors.Is(got, unix.EBUSY) {
		t.Errorf("got %v", got)
	}
}
