package devmapper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/devmapper/dm"
	"criserver/pkg/waiting"
)

// undoLimit is for what is undone after the caller's time is over.
const undoLimit = 10 * time.Second

// Prepare implements snapshot.Snapshotter. But for the first snapshot of an image, whose layers are copied, it costs the kernel's copy of
// a tree's root and two writes to disk. The key may be as much shorter than snapshot.MaxKey as the lower driver's has in front.
func (s *Snapshotter) Prepare(ctx context.Context, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	if s.options.Pool == "" {
		return nil, fmt.Errorf("prepare snapshot %s: no thin pool is configured (snapshot.devmapper.pool)", key)
	}
	if err := snapshot.CheckKey(key); err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	release, err := s.claims.Acquire(ctx, "snapshot/"+key)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	_, taken := s.find(key)
	if !taken {
		_, err = s.Lower.Mounts(ctx, key)
	}
	switch {
	case taken, err == nil:
		err = fmt.Errorf("prepare snapshot %s: %w", key, snapshot.ErrExists)
	case errors.Is(err, snapshot.ErrNotFound):
		// It keeps the layers as long as it is there, and has the volumes. The lower driver also knows what can be wrong.
		_, err = s.Lower.Prepare(ctx, rootPrefix+key, layers)
	}
	if err != nil {
		release()
		return nil, err
	}
	if _, err = s.image(ctx, layers); err != nil { // this may take its time, and tells how far it is
		defer release()
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, s.undo(ctx, key, err))
	}
	mounts, err := waiting.For(ctx, func() ([]snapshot.Mount, error) {
		defer release()
		mounts, err := s.prepare(ctx, key, layers)
		if err == nil {
			err = context.Cause(ctx) // nobody waits any more
		}
		if err != nil {
			err = s.undo(ctx, key, err)
		}
		return mounts, err
	})
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	return mounts, nil
}

// undo removes what Prepare has made, and returns its error.
func (s *Snapshotter) undo(ctx context.Context, key string, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	return errors.Join(err, s.remove(ctx, key))
}

func (s *Snapshotter) prepare(ctx context.Context, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	r, err := s.allocateFrom(func() (record, error) { return s.image(ctx, layers) }, func(image record) record {
		return record{
			Pool: image.Pool, Kind: kindRoot, Key: key, Image: image.Image, Layers: layers, Size: image.Size, FileSystem: image.FileSystem,
			From: image.ID, Used: image.Used,
		}
	})
	if err != nil {
		return nil, err
	}
	info, err := s.activate(ctx, r)
	if err == nil {
		err = s.made(r)
	}
	if err != nil {
		s.abandon(r)
		return nil, err
	}
	return mountsOf(info.Path()), nil
}

// claimDevice is for who makes a block device of a thin device, or takes it away: the kernel does not bear two of them at once.
func (s *Snapshotter) claimDevice(ctx context.Context, r record) (release func(), err error) {
	return s.claims.Acquire(ctx, "active/"+strconv.FormatUint(uint64(r.ID), 10))
}

// activate makes a block device of a thin device, unless there is one. It waits for the kernel.
func (s *Snapshotter) activate(ctx context.Context, r record) (dm.Info, error) {
	release, err := s.claimDevice(ctx, r)
	if err != nil {
		return dm.Info{}, err
	}
	defer release()
	return r.pool().activate(r.ID, r.Size)
}

// deactivate takes the block device away, and waits a while for those who have it open. unix.EBUSY.
func (s *Snapshotter) deactivate(ctx context.Context, r record) error {
	release, err := s.claimDevice(ctx, r)
	if err != nil {
		return err
	}
	defer release()
	return r.pool().deactivate(ctx, r.ID)
}

// mountsOf describes the file system of a device. What mkfs left for later is never done: it would be written once for each container.
func mountsOf(device string, options ...string) []snapshot.Mount {
	return []snapshot.Mount{{Type: fsType, Source: device, Options: append(options, "noinit_itable")}}
}

// find returns the record of a snapshot; false if it is none of this driver's.
func (s *Snapshotter) find(key string) (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.roots[key]
	return s.devices[id], ok
}

// Mounts implements snapshot.Snapshotter.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]snapshot.Mount, error) {
	r, ok := s.find(key)
	if !ok {
		return s.Lower.Mounts(ctx, key)
	}
	mounts, err := waiting.For(ctx, func() ([]snapshot.Mount, error) {
		info, err := s.activate(ctx, r)
		return mountsOf(info.Path()), err
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	return mounts, nil
}

// Remove implements snapshot.Snapshotter. The device goes in the background.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	release, err := s.claims.Acquire(ctx, "snapshot/"+key)
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	defer release()
	return s.remove(ctx, key)
}

func (s *Snapshotter) remove(ctx context.Context, key string) error {
	// The record may be lost, or the snapshot be the lower driver's alone.
	if err := errors.Join(s.Lower.Remove(ctx, rootPrefix+key), s.Lower.Remove(ctx, key)); err != nil {
		return err
	}
	if r, ok := s.find(key); ok {
		s.abandon(r)
	}
	return nil
}

// Prefixes of the keys of the lower driver's snapshots that are for this one.
const (
	rootPrefix = "devmapper.root."  // below a snapshot, before its key
	viewPrefix = "devmapper.image." // what an image is copied from, before the ID of its device
)

func viewKey(image record) string { return viewPrefix + strconv.FormatUint(uint64(image.ID), 10) }

// lowerKey is the key of the lower driver's snapshot. root: the snapshot is one of this driver's.
func lowerKey(key string, root bool) string {
	if root {
		return rootPrefix + key
	}
	return key
}

// View implements snapshot.Snapshotter.
func (s *Snapshotter) View(ctx context.Context, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	if _, ok := s.find(key); ok {
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, snapshot.ErrExists)
	}
	return s.Lower.View(ctx, key, layers)
}

// Volume implements snapshot.Volumes.
func (s *Snapshotter) Volume(ctx context.Context, key, name string) (dir string, err error) {
	_, ok := s.find(key)
	return s.Lower.Volume(ctx, lowerKey(key, ok), name)
}

// Volumes implements snapshot.Volumes.
func (s *Snapshotter) Volumes(ctx context.Context, key string) (dir string, err error) {
	_, ok := s.find(key)
	return s.Lower.Volumes(ctx, lowerKey(key, ok))
}

// Snapshots implements snapshot.Snapshotter. Those whose records are lost are among them.
func (s *Snapshotter) Snapshots(ctx context.Context) ([]string, error) {
	lower, err := s.Lower.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	keys := map[string]struct{}{}
	for _, key := range lower {
		if !strings.HasPrefix(key, viewPrefix) {
			keys[strings.TrimPrefix(key, rootPrefix)] = struct{}{}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.roots { // one that is being removed may be none of the lower driver's any more
		keys[key] = struct{}{}
	}
	return slices.Collect(maps.Keys(keys)), nil
}

// RemoveLayer implements snapshot.Layers. The images that have the layer go with it.
func (s *Snapshotter) RemoveLayer(ctx context.Context, diffID digest.Digest) error {
	if err := s.Lower.RemoveLayer(ctx, diffID); err != nil {
		return err
	}
	s.retireIf(func(r record) bool { return slices.Contains(r.Layers, diffID) })
	return nil
}

// Restage implements snapshot.Trees. The images that have the layer are copied anew.
func (s *Snapshotter) Restage(ctx context.Context, chain []digest.Digest) (snapshot.Stage, error) {
	stage, err := s.Lower.Restage(ctx, chain)
	if err != nil {
		return nil, err
	}
	return replacement{stage, s, chain[len(chain)-1]}, nil
}

// replacement is the Stage of a layer that is damaged.
type replacement struct {
	snapshot.Stage
	s      *Snapshotter
	diffID digest.Digest
}

// Inherit implements snapshot.Inheritor, for a lower driver that does.
func (r replacement) Inherit(implied []string) {
	if in, ok := r.Stage.(snapshot.Inheritor); ok {
		in.Inherit(implied)
	}
}

// Commit implements snapshot.Stage.
func (r replacement) Commit(ctx context.Context, usage snapshot.Usage) error {
	err := r.Stage.Commit(ctx, usage)
	// After an error too: it may have been replaced before that.
	r.s.retireIf(func(image record) bool { return slices.Contains(image.Layers, r.diffID) })
	return err
}
