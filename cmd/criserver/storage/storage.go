// Package storage puts the snapshot drivers together.
package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"criserver/cmd/criserver/config"
	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/devmapper"
	"criserver/pkg/snapshot/overlay"
)

// Driver is what all drivers together do, with new snapshots by overlay.
type Driver = devmapper.Lower

// Storage gives containers snapshots by the driver of their runtime handler. All else is the same whatever the driver.
type Storage struct {
	Driver
	layers   *overlay.Snapshotter
	thin     *devmapper.Snapshotter // nil if there is neither a pool nor a snapshot in one
	standard string                 // the driver of handlers that name none
}

// LayerRoot is where layers are.
func LayerRoot(c *config.Config) string { return filepath.Join(c.Root, "overlay") }

// Open opens the drivers. The caller ends them with Close.
func Open(ctx context.Context, c *config.Config) (*Storage, error) {
	layers, err := overlay.New(LayerRoot(c), overlay.Options{
		WritableBytes: int64(c.Snapshot.WritableSizeLimit), WritableInodes: c.Snapshot.WritableFilesLimit,
	})
	if err != nil {
		return nil, err
	}
	s := &Storage{Driver: layers, layers: layers, standard: c.Snapshot.Driver}
	root, thin := filepath.Join(c.Root, "devmapper"), c.Snapshot.Devmapper
	if thin.Pool == "" && !devmapper.Used(root) {
		return s, nil
	}
	s.thin, err = devmapper.New(ctx, root, layers, devmapper.Options{Pool: thin.Pool, Size: thin.Bytes()})
	if err != nil {
		return nil, errors.Join(err, layers.Close(ctx))
	}
	s.Driver = s.thin
	return s, nil
}

// Prepare makes a writable snapshot by a driver, "" being the configured one; otherwise as snapshot.Snapshotter.
func (s *Storage) Prepare(ctx context.Context, driver, key string, layers []digest.Digest) ([]snapshot.Mount, error) {
	switch driver = cmp.Or(driver, s.standard); {
	case driver == config.Overlay:
		return s.layers.Prepare(ctx, key, layers)
	case driver == config.Devmapper && s.thin != nil:
		return s.thin.Prepare(ctx, key, layers)
	}
	return nil, fmt.Errorf("there is no snapshotter %q", driver)
}

// Ready tells why a driver, "" being the configured one, cannot make snapshots; nil if it can.
func (s *Storage) Ready(ctx context.Context, driver string) error {
	if cmp.Or(driver, s.standard) == config.Devmapper {
		if err := s.thin.Ready(ctx); err != nil {
			return fmt.Errorf("snapshotter %s: %w", config.Devmapper, err)
		}
	}
	return nil
}

// Close ends the drivers, the uppermost first.
func (s *Storage) Close(ctx context.Context) error {
	var err error
	if s.thin != nil {
		err = s.thin.Close(ctx)
	}
	return errors.Join(err, s.layers.Close(ctx))
}
