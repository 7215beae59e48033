// Package devmapper gives containers root file systems on block devices of their own: ext4 on thin devices of the kernel's device
// mapper. A container cannot write more than the size of its device, and what it does to its file system is no matter of the host's.
//
// Layers are kept by another driver, below this one. The first snapshot of an image copies what its layers show to a thin device;
// that one and each later is a copy on write of this device. Read-only snapshots, and the volumes of writable ones, are the lower
// driver's.
//
// On disk, below the root:
//
//	lock                 held by the process that uses the root
//	pool                 the name of the thin pool
//	devices/<id>.json    the record of a thin device, by its ID in the pool
//	work/                where devices are mounted while they are being made, and what is between; emptied by New
//
// The thin pool is the operator's to make, and has no other user. It may be missing: then snapshots cannot be made until it is back.
package devmapper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/claim"
	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/rootlock"
	"criserver/pkg/waiting"
	"criserver/pkg/wholefile"
)

const (
	devicesDir = "devices"
	workDir    = "work"
	poolFile   = "pool"
)

// LeastSize is the smallest device that a root file system can have, in bytes.
const LeastSize = 64 << 20

// Options tell what snapshots are made of.
type Options struct {
	// Pool is the name of the thin pool, as in /dev/mapper. "" is the one that was used last: nothing is made then, but removed.
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
	pool    pool
	lock    *os.File
	claims  claim.Claims
	reaper  *reaper

	mu       sync.Mutex // guards what follows; never held across a system call
	devices  map[uint32]record
	roots    map[string]uint32        // snapshots by their keys
	images   map[digest.Digest]uint32 // of the configured size
	base     uint32                   // of the configured size; 0 is none
	foreign  map[uint32]struct{}      // devices of the pool that are not ours
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
	for _, dir := range []string{devicesDir, workDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("make devmapper root: %w", err)
		}
	}
	lock, err := rootlock.Take(root)
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{
		Lower: lower, root: root, options: o, lock: lock,
		devices: map[uint32]record{}, roots: map[string]uint32{}, images: map[digest.Digest]uint32{}, foreign: map[uint32]struct{}{},
		mounted: map[uint32]string{}, measured: map[uint32]snapshot.Measurement{},
	}
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
	if err := s.choosePool(); err != nil {
		return err
	}
	s.reaper = startReaper(s)
	return s.collect(ctx)
}

// choosePool remembers the pool, and refuses another one while there are snapshots in the one before.
func (s *Snapshotter) choosePool() error {
	path := filepath.Join(s.root, poolFile)
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read which thin pool was used: %w", err)
	}
	used := strings.TrimSpace(string(data))
	s.pool.name = used
	if s.options.Pool == "" || s.options.Pool == used {
		return nil
	}
	if len(s.roots) > 0 {
		return fmt.Errorf("the root file systems of %d containers are in the thin pool %q: remove these before you configure the pool %q, or delete %s if that pool is lost",
			len(s.roots), used, s.options.Pool, s.root)
	}
	for id := range s.devices { // images, which are made anew
		if err := s.forget(id, false); err != nil {
			return err
		}
	}
	s.base, s.images = 0, map[digest.Digest]uint32{}
	s.pool.name = s.options.Pool
	if err := wholefile.Write(path, []byte(s.options.Pool+"\n")); err != nil {
		return fmt.Errorf("write which thin pool is used: %w", err)
	}
	return nil
}

// Used tells whether there are records of thin devices below a root.
func Used(root string) bool {
	entries, err := os.ReadDir(filepath.Join(root, devicesDir))
	return err == nil && len(entries) > 0
}

// Ready tells why no snapshot can be made; nil if one can.
func (s *Snapshotter) Ready(ctx context.Context) error {
	if s.options.Pool == "" {
		return errors.New("no thin pool is configured (snapshot.devmapper.pool)")
	}
	if _, err := exec.LookPath(mkfs); err != nil {
		return fmt.Errorf("%w: install e2fsprogs", err)
	}
	_, err := waiting.For(ctx, s.pool.room)
	return err
}

// Close waits for work in the background, but not beyond the context's end; what remains is done after the next New. No other method may
// run or be called any more.
func (s *Snapshotter) Close(ctx context.Context) error {
	return errors.Join(s.reaper.stop(ctx), s.lock.Close())
}
