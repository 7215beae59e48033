package devmapper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
	"criserver/pkg/waiting"
)

// undoLimit is for what is undone after the caller's time is over.
const undoLimit = 10 * time.Second

// Prepare implements snapshot.Snapshotter. But for the first snapshot of an image, whose layers are copied, it costs the kernel's copy of
// a tree's root and two writes to disk.
func (s *Snapshotter) Prepare(ctx context.Context, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	if s.options.Pool == "" {
		return nil, fmt.Errorf("prepare snapshot %s: no thin pool is configured (snapshot.devmapper.pool)", key)
	}
	release, err := s.claims.Acquire(ctx, "snapshot/"+key)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	// The lower driver keeps the layers as long as its snapshot is there, and the volumes are in it. It also knows what can be wrong.
	if _, err := s.Lower.Prepare(ctx, key, layers); err != nil {
		release()
		return nil, err
	}
	mounts, err := waiting.For(ctx, func() ([]snapshot.Mount, error) {
		defer release()
		mounts, err := s.prepare(ctx, key, layers)
		if err == nil {
			err = context.Cause(ctx) // nobody waits any more
		}
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
			defer cancel()
			err = errors.Join(err, s.remove(undo, key))
		}
		return mounts, err
	})
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	return mounts, nil
}

func (s *Snapshotter) prepare(ctx context.Context, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	r, err := s.allocateFrom(func() (record, error) { return s.image(ctx, layers) }, func(image record) record {
		return record{Kind: kindRoot, Key: key, Image: image.Image, Layers: layers, Size: image.Size, From: image.ID, Used: image.Used}
	})
	if err != nil {
		return nil, err
	}
	info, err := s.pool.activate(r.ID, r.Size)
	if err == nil {
		err = s.made(r)
	}
	if err != nil {
		return nil, errors.Join(err, s.abandon(r))
	}
	return mountsOf(info.Path()), nil
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
		info, err := s.pool.activate(r.ID, r.Size)
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
	if r, ok := s.find(key); ok {
		if err := s.abandon(r); err != nil {
			return fmt.Errorf("remove snapshot %s: %w", key, err)
		}
	}
	return s.Lower.Remove(ctx, key)
}

// viewPrefix is before the keys of the lower driver's snapshots that images are copied from.
const viewPrefix = "devmapper."

// Snapshots implements snapshot.Snapshotter.
func (s *Snapshotter) Snapshots(ctx context.Context) ([]string, error) {
	lower, err := s.Lower.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	keys := map[string]struct{}{}
	for _, key := range lower {
		if !strings.HasPrefix(key, viewPrefix) {
			keys[key] = struct{}{}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.roots { // the lower driver may have lost some
		keys[key] = struct{}{}
	}
	return slices.Collect(maps.Keys(keys)), nil
}

// RemoveLayer implements snapshot.Layers. The images that have the layer go with it.
func (s *Snapshotter) RemoveLayer(ctx context.Context, diffID digest.Digest) error {
	if err := s.Lower.RemoveLayer(ctx, diffID); err != nil {
		return err
	}
	return s.abandonIf(func(r record) bool { return r.Kind == kindImage && slices.Contains(r.Layers, diffID) })
}

// abandonIf lets devices be removed that are made and that nobody is about to use.
func (s *Snapshotter) abandonIf(unwanted func(record) bool) error {
	s.mu.Lock()
	var out []record
	for _, r := range s.devices {
		if r.Step == stepMade && unwanted(r) {
			out = append(out, r)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, r := range out {
		errs = append(errs, s.abandon(r))
	}
	return errors.Join(errs...)
}
