package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
)

func (s *Snapshotter) snapshotPath(key string) string {
	return filepath.Join(s.root, snapshotsDir, key)
}

// Prepare implements snapshot.Snapshotter. It is on the way of each container start: it makes three directories and
// a file and syncs nothing. With project quotas two directories get a project, whose limits are those that the driver was
// opened with and stay so.
func (s *Snapshotter) Prepare(ctx context.Context, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	return s.create(ctx, snapshotRecord{Key: key, Layers: slices.Clone(layers)})
}

// View implements snapshot.Snapshotter.
func (s *Snapshotter) View(ctx context.Context, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	return s.create(ctx, snapshotRecord{Key: key, Layers: slices.Clone(layers), ReadOnly: true})
}

func (s *Snapshotter) create(ctx context.Context, record snapshotRecord) ([]snapshot.Mount, error) {
	if err := snapshot.CheckKey(record.Key); err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	release, err := s.claims.Acquire(ctx, snapshotsDir+"/"+record.Key)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	defer release()
	layers, err := s.retain(record)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", record.Key, err)
	}
	if err := s.build(ctx, &record, layers); err != nil {
		s.drop(record)
		return nil, fmt.Errorf("prepare snapshot %s: %w", record.Key, err)
	}
	s.mu.Lock()
	s.snapshots[record.Key] = record
	s.mu.Unlock()
	if record.Project == 0 {
		s.measurer.Add(record.Key, false)
	}
	return s.mounts(record, layers), nil
}

// retain counts the snapshot in at its layers and returns those that make it up, see visible.
func (s *Snapshotter) retain(record snapshotRecord) ([]layerRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.snapshots[record.Key]; taken {
		return nil, snapshot.ErrExists
	}
	layers, err := s.visible(record.Layers)
	if err != nil {
		return nil, err
	}
	for _, diffID := range distinct(record.Layers) {
		s.layers[diffID].refs++
	}
	return layers, nil
}

// drop forgets the snapshot and counts it out at its layers.
func (s *Snapshotter) drop(record snapshotRecord) {
	var unused []string
	s.mu.Lock()
	delete(s.snapshots, record.Key)
	for _, diffID := range distinct(record.Layers) {
		if l := s.layers[diffID]; l != nil {
			l.refs--
			unused = append(unused, l.unused()...)
		}
	}
	s.mu.Unlock()
	if err := s.discardAll(unused); err != nil {
		logrus.WithError(err).Warn("a replaced layer stays on disk until the next start")
	}
}

// build makes the snapshot's directory and completes the record.
func (s *Snapshotter) build(ctx context.Context, record *snapshotRecord, layers []layerRecord) error {
	inherited, err := s.inherit(ctx, layers)
	if err != nil {
		return err
	}
	record.Inherits = record.ReadOnly && len(inherited) > 0
	path := s.stagePath(record.Key)
	err = s.populate(ctx, path, record, inherited)
	if err == nil {
		err = unix.Rename(path, s.snapshotPath(record.Key))
	}
	if err != nil {
		return errors.Join(err, s.discard(path))
	}
	return nil
}

func (s *Snapshotter) populate(ctx context.Context, path string, record *snapshotRecord, inherited []inheritedDir) error {
	if err := unix.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	if err := mkdir(filepath.Join(path, upperDir), 0o755); err != nil {
		return err
	}
	if !record.ReadOnly {
		if err := unix.Mkdir(filepath.Join(path, workDir), 0o700); err != nil {
			return fmt.Errorf("make directory %s: %w", workDir, err)
		}
		var err error
		if record.Project, err = s.projects.assign(ctx, path); err != nil { // while there is nothing in them
			return err
		}
	}
	for _, dir := range inherited {
		if err := dir.copyTo(filepath.Join(path, upperDir)); err != nil {
			return err
		}
	}
	return writeRecord(filepath.Join(path, snapshotRec), *record, false)
}

// Mounts implements snapshot.Snapshotter. A snapshot that was mounted before can be mounted again, even if the
// machine stopped while it was: what the container had written is then as complete as the file system left it.
func (s *Snapshotter) Mounts(_ context.Context, key string) ([]snapshot.Mount, error) {
	s.mu.Lock()
	record, ok := s.snapshots[key]
	var layers []layerRecord
	err := snapshot.ErrNotFound
	if ok {
		layers, err = s.visible(record.Layers)
	}
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	if !record.ReadOnly {
		if err := clearVolatile(s.snapshotPath(key)); err != nil {
			return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
		}
	}
	return s.mounts(record, layers), nil
}

// Remove implements snapshot.Snapshotter. The space is freed in the background.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	release, err := s.claims.Acquire(ctx, snapshotsDir+"/"+key)
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	defer release()
	s.mu.Lock()
	record, ok := s.snapshots[key]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	if err := s.discard(s.snapshotPath(key)); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	s.drop(record)
	s.measurer.Remove(key)
	return nil
}

// Snapshots implements snapshot.Snapshotter.
func (s *Snapshotter) Snapshots(context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.snapshots)), nil
}
