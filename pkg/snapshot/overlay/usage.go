package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"criserver/pkg/snapshot"
)

// Usage implements snapshot.Accountant: exact and of this moment by the project's count, or else as measured last.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshot.Measurement, error) {
	if err := ctx.Err(); err != nil {
		return snapshot.Measurement{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	s.mu.Lock()
	record, ok := s.snapshots[key]
	s.mu.Unlock()
	if !ok {
		return snapshot.Measurement{}, fmt.Errorf("usage of snapshot %s: %w", key, snapshot.ErrNotFound)
	}
	if record.Project == 0 {
		return s.measurer.Usage(key), nil
	}
	usage, err := s.projects.usage(record.Project)
	if err != nil {
		return snapshot.Measurement{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	return snapshot.Measurement{Usage: usage, Measured: time.Now()}, nil
}

// Totals implements snapshot.Accountant.
func (s *Snapshotter) Totals(ctx context.Context) (snapshot.Totals, error) {
	if err := ctx.Err(); err != nil {
		return snapshot.Totals{}, fmt.Errorf("usage of all snapshots: %w", err)
	}
	s.mu.Lock()
	layers := s.layerTotal
	s.mu.Unlock()
	counted, err := s.projects.total(ctx)
	if err != nil {
		return snapshot.Totals{}, fmt.Errorf("usage of all snapshots: %w", err)
	}
	return snapshot.Totals{Layers: layers, Writable: s.measurer.Total().Add(counted)}, nil
}

// measure walks the upper directory and the volumes of a snapshot, for the measurer.
func (s *Snapshotter) measure(ctx context.Context, key string) (snapshot.Usage, error) {
	layer, err := snapshot.DiskUsage(ctx, filepath.Join(s.snapshotPath(key), upperDir))
	if err != nil {
		return layer, err
	}
	volumes, err := snapshot.DiskUsage(ctx, filepath.Join(s.snapshotPath(key), volumesDir))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return layer.Add(volumes), err
}
