package devmapper

import (
	"context"
	"errors"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

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
	// reapLimit is how long the kernel may take with one device; then it is left to that, and so is its pool until the kernel has ended.
	reapLimit = 10 * time.Second
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

// retry is when a device is tried again.
type retry struct {
	pause  time.Duration
	at     time.Time
	warned bool
}

func (r *reaper) run(ctx context.Context) {
	defer close(r.done)
	retries := map[uint32]retry{}
	for {
		next := mostPause
		for _, device := range r.s.removing() {
			again := retries[device.ID]
			if wait := time.Until(again.at); wait > 0 {
				next = min(next, wait)
				continue
			}
			err := r.s.removeDevice(ctx, device)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				delete(retries, device.ID)
				continue
			}
			again.pause = min(max(2*again.pause, leastPause), mostPause)
			again.at = time.Now().Add(again.pause)
			if !again.warned && again.pause > time.Second { // the first tries are often in vain
				again.warned = true
				logrus.WithError(err).WithFields(logrus.Fields{"pool": device.Pool, "device": device.ID}).
					Warn("cannot remove a thin device; it is tried again")
			}
			retries[device.ID] = again
			next = min(next, again.pause)
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-r.signal:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// removing are the devices that are to be removed.
func (s *Snapshotter) removing() (out []record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.devices {
		if r.Step == stepRemoving || r.Step == stepUnsure {
			out = append(out, r)
		}
	}
	return out
}

var errStuck = errors.New("the kernel has not ended the removal of another device of the pool")

// removeDevice removes a device from the kernel and from the pool, and then its record. It waits for nobody who has it open.
func (s *Snapshotter) removeDevice(ctx context.Context, r record) error {
	release, ok := s.claims.Try("reaping/" + r.Pool)
	if !ok {
		return errStuck
	}
	ctx, cancel := context.WithTimeout(ctx, reapLimit)
	defer cancel()
	ours, err := waiting.For(ctx, func() (bool, error) {
		defer release()
		return s.remover(ctx, r)
	})
	switch {
	case err != nil:
		return err
	case !ours: // or an empty one of ours, without a file system
		return s.disown(r)
	case r.Kind == kindImage: // what it was being copied from may be left
		if err := s.Lower.Remove(ctx, viewKey(r)); err != nil {
			return err
		}
	}
	return s.forget(r)
}

// remover says false of a device that is not ours.
func (s *Snapshotter) remover(ctx context.Context, r record) (bool, error) {
	active, err := s.claimDevice(ctx, r)
	if err != nil {
		return true, err
	}
	defer active()
	if r.Step == stepUnsure {
		has, err := r.pool().fileSystem(r.ID, r.Size)
		if errors.Is(err, unix.ENODATA) { // there is no such device
			return true, nil
		}
		if err != nil || has != r.FileSystem {
			return err != nil, errors.Join(err, r.pool().drop(r.ID))
		}
	}
	if err := r.pool().drop(r.ID); err != nil {
		return true, err
	}
	return true, r.pool().delete(r.ID)
}
