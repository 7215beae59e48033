package overlay

import (
	"context"
	"fmt"
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
		return s.measurer.usage(key), nil
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
	return snapshot.Totals{Layers: layers, Writable: together(s.measurer.total(), counted)}, nil
}

// together adds up two measurements. The older one's time is the sum's, unless one has never been made.
func together(a, b snapshot.Measurement) snapshot.Measurement {
	sum := snapshot.Measurement{Usage: a.Usage.Add(b.Usage), Measured: a.Measured}
	if a.Measured.IsZero() || !b.Measured.IsZero() && b.Measured.Before(a.Measured) {
		sum.Measured = b.Measured
	}
	return sum
}

// measure walks the upper directory of a snapshot, for the measurer.
func (s *Snapshotter) measure(ctx context.Context, key string) (snapshot.Usage, error) {
	return snapshot.DiskUsage(ctx, filepath.Join(s.snapshotPath(key), upperDir))
}
