// Package devmapper gives containers root file systems on block devices of their own: ext4 on thin devices of the kernel's device
// mapper. A container cannot write more than the size of its device, and what it does to its file system is no matter of the host's.
//
// Layers are kept by another driver, below this one. The first snapshot of an image copies what its layers show to a thin device;
// that one and each later is a copy on write of this device. Read-only snapshots, and the volumes of writable ones, are the lower
// driver's.
//
// On disk, below the root:
//
//	lock                        held by the process that uses the root
//	devices/<pool>/<id>.json    the record of a thin device, by its ID in the thin pool
//	work/                       where devices are mounted while they are being made, and what is between; emptied by New
//
// The thin pool is the operator's to make, and has no other user. It may be missing: then snapshots cannot be made until it is back.
//
// A snapshot is one of the lower driver's as well, of the key with a prefix: that keeps the layers, and has the volumes. Where the record
// of a device is lost, the key is unknown, and is never taken for a snapshot in which nothing was written.
package devmapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/claim"
	"criserver/pkg/flight"
	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/rootlock"
	"criserver/pkg/snapshot/syncfs"
	"criserver/pkg/waiting"
)

const (
	devicesDir = "devices"
	workDir    = "work"
)

// LeastSize is the smallest device that a root file system can have, in bytes.
const LeastSize = 64 << 20

// Options tell what snapshots are made of.
type Options struct {
	// Pool is the name of the thin pool, as in /dev/mapper. "" is none: nothing is made then, but removed.
	Pool string
	// Size is that of each root file system, the image in it, in bytes. Those that are there keep theirs.
	Size int64
}

// Lower is the driver that keeps the layers.
type Lower interface {
	snapshot.Snapshotter
	snapshot.Volumes
	snapshot.Trees
	snapshot.Changer
	snapshot.Filler
}

// Snapshotter implements snapshot.Snapshotter. What it does not do itself is the lower driver's, which must not be used for snapshots
// of the same keys.
type Snapshotter struct {
	Lower
	root    string
	options Options
	lock    *os.File
	claims  claim.Claims
	copies  flight.Group[digest.Digest, record] // images that are being made
	reaper  *reaper

	mu       sync.Mutex // guards what follows; never held across a system call
	devices  map[uint32]record
	roots    map[string]uint32        // snapshots by their keys
	images   map[digest.Digest]uint32 // of the configured pool and size
	base     uint32                   // as images; 0 is none
	outdated map[uint32]struct{}      // images that are being made of a layer that has been replaced
	foreign  map[uint32]struct{}      // devices that are not ours
	last     uint32                   // the ID given last
	mounted  map[uint32]string        // where devices were seen mounted
	measured map[uint32]snapshot.Measurement
}

var (
	_ snapshot.Snapshotter = (*Snapshotter)(nil)
	_ Lower                = (*Snapshotter)(nil)
)

// New opens the records below root, which it creates if need be, and clears away what an earlier process left half made. The
// lower driver stays the caller's, who ends this one first, with Close.
func New(ctx context.Context, root string, lower Lower, o Options) (*Snapshotter, error) {
	for _, dir := range []string{filepath.Join(devicesDir, o.Pool), workDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("make devmapper root: %w", err)
		}
	}
	if err := syncfs.Names(filepath.Join(root, devicesDir)); err != nil {
		return nil, fmt.Errorf("make devmapper root: %w", err)
	}
	lock, err := rootlock.Take(root)
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{
		Lower: lower, root: root, options: o, lock: lock,
		devices: map[uint32]record{}, roots: map[string]uint32{}, images: map[digest.Digest]uint32{}, outdated: map[uint32]struct{}{},
		foreign: map[uint32]struct{}{}, mounted: map[uint32]string{}, measured: map[uint32]snapshot.Measurement{},
	}
	s.reaper = newReaper(s)
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func (s *Snapshotter) start(ctx context.Context) error {
	if err := s.clearWorks(); err != nil {
		return err
	}
	if err := s.load(); err != nil {
		return err
	}
	lower, err := s.Lower.Snapshots(ctx)
	if err != nil {
		return err
	}
	s.dropUnknown(lower)
	if err := s.checkPool(); err != nil {
		return err
	}
	if err := s.collect(ctx, lower); err != nil {
		return err
	}
	s.reaper.start()
	return nil
}

// checkPool refuses another pool while there are snapshots in the one before.
func (s *Snapshotter) checkPool() error {
	if s.options.Pool == "" {
		return nil
	}
	used := map[string]int{}
	for _, id := range s.roots {
		if p := s.devices[id].Pool; p != s.options.Pool {
			used[p]++
		}
	}
	for p, n := range used {
		return fmt.Errorf("the root file systems of %d containers are in the thin pool %q: remove these before you configure the pool %q, or delete %s if that pool is lost",
			n, p, s.options.Pool, filepath.Join(s.root, devicesDir, p))
	}
	return nil
}

// Used tells whether thin devices have ever been made below a root.
func Used(root string) bool {
	_, err := os.Stat(filepath.Join(root, devicesDir))
	return err == nil
}

// pool is where devices are made.
func (s *Snapshotter) pool() pool { return pool{s.options.Pool} }

// Ready tells why no snapshot can be made; nil if one can.
func (s *Snapshotter) Ready(ctx context.Context) error {
	if s.options.Pool == "" {
		return errors.New("no thin pool is configured (snapshot.devmapper.pool)")
	}
	if _, err := exec.LookPath(mkfs); err != nil {
		return fmt.Errorf("%w: install e2fsprogs", err)
	}
	_, err := waiting.For(ctx, s.pool().room)
	return err
}

var errClosed = errors.New("the snapshotter is being closed")

// Close ends work in the background and waits for that, but not beyond the context's end; what remains is done after the next New. No other method may
// run or be called any more.
func (s *Snapshotter) Close(ctx context.Context) error {
	s.copies.End(errClosed)
	if err := errors.Join(waiting.On(ctx, s.copies.Wait), s.reaper.stop(ctx)); err != nil {
		return err // the lock goes with the process: what is not done may still make a device
	}
	return s.lock.Close()
}
