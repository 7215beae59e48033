package devmapper

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/waiting"
)

// reaper removes thin devices in the background. One that is still in use, or whose pool is missing, is tried again.
type reaper struct {
	s      *Snapshotter
	signal chan struct{} // of one: something is to be removed
	cancel context.CancelFunc
	done   chan struct{}
}

const (
	leastPause = 50 * time.Millisecond
	mostPause  = 30 * time.Second
)

func newReaper(s *Snapshotter) *reaper {
	return &reaper{s: s, signal: make(chan struct{}, 1), done: make(chan struct{})}
}

// start begins the work, which stop ends.
func (r *reaper) start() {
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.wake()
	go r.run(ctx)
}

func (r *reaper) wake() {
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

// stop ends the work, but does not wait beyond the end of ctx.
func (r *reaper) stop(ctx context.Context) error {
	r.cancel()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *reaper) run(ctx context.Context) {
	defer close(r.done)
	warned := map[uint32]struct{}{}
	pause := leastPause
	for {
		failed := false
		for _, device := range r.s.removing() {
			if ctx.Err() != nil {
				return
			}
			err := r.s.removeDevice(ctx, device)
			if err == nil {
				delete(warned, device.ID)
				continue
			}
			failed = true
			if _, again := warned[device.ID]; !again && pause > time.Second { // the first tries are often in vain
				warned[device.ID] = struct{}{}
				logrus.WithError(err).WithFields(logrus.Fields{"pool": device.Pool, "device": device.ID}).Warn("cannot remove a thin device; it is tried again")
			}
		}
		var retry <-chan time.Time
		if failed {
			retry = time.After(pause)
			pause = min(2*pause, mostPause)
		} else {
			pause = leastPause
		}
		select {
		case <-ctx.Done():
			return
		case <-r.signal:
		case <-retry:
		}
	}
}

// removing are the devices that are to be removed.
func (s *Snapshotter) removing() (out []record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.devices {
		if r.Step == stepRemoving {
			out = append(out, r)
		}
	}
	return out
}

// removeDevice removes a device from the kernel and from the pool, and then its record. It waits for nobody.
func (s *Snapshotter) removeDevice(ctx context.Context, r record) error {
	_, err := waiting.For(ctx, func() (struct{}, error) {
		err := r.pool().drop(r.ID)
		if err == nil {
			err = r.pool().delete(r.ID)
		}
		return struct{}{}, err
	})
	if err != nil {
		return err
	}
	return s.forget(r)
}
