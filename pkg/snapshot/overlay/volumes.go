package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/quota"
)

var _ snapshot.Volumes = (*Snapshotter)(nil)

// Volume implements snapshot.Volumes.
func (s *Snapshotter) Volume(ctx context.Context, key, name string) (string, error) {
	if err := snapshot.CheckKey(name); err != nil {
		return "", fmt.Errorf("name of a volume: %w", err)
	}
	release, err := s.claims.Acquire(ctx, snapshotsDir+"/"+key)
	if err != nil {
		return "", fmt.Errorf("make volume of snapshot %s: %w", key, err)
	}
	defer release()
	s.mu.Lock()
	record, ok := s.snapshots[key]
	s.mu.Unlock()
	if !ok || record.ReadOnly {
		return "", fmt.Errorf("make volume of snapshot %s: it has no writable layer: %w", key, snapshot.ErrNotFound)
	}
	dir, err := s.makeVolume(record, name)
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%w: %w", snapshot.ErrExists, err)
	}
	if err != nil {
		return "", fmt.Errorf("make volume of snapshot %s: %w", key, err)
	}
	return dir, nil
}

func (s *Snapshotter) makeVolume(record snapshotRecord, name string) (string, error) {
	above := filepath.Join(s.snapshotPath(record.Key), volumesDir)
	if err := unix.Mkdir(above, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("make directory %s: %w", above, err)
	}
	// Each time: a process may have died between the two.
	if record.Project != 0 {
		if err := quota.Assign(above, record.Project); err != nil {
			return "", err
		}
	}
	dir := filepath.Join(above, name)
	return dir, mkdir(dir, 0o755)
}

// Volumes implements snapshot.Volumes.
func (s *Snapshotter) Volumes(_ context.Context, key string) (string, error) {
	if err := snapshot.CheckKey(key); err != nil {
		return "", fmt.Errorf("volumes of a snapshot: %w", err)
	}
	above := filepath.Join(s.snapshotPath(key), volumesDir)
	_, err := os.Lstat(above)
	if errors.Is(err, os.ErrNotExist) {
		err = snapshot.ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("volumes of snapshot %s: %w", key, err)
	}
	return above, nil
}
