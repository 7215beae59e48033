package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"criserver/pkg/snapshot"
)

// Remove removes an image with all its names, in every repository (CRI, RemoveImage). It is idempotent: ErrNotFound is
// no error of it. The image is out of sight when Remove returns; its space is freed in the background, and that of layers
// that a container uses when the container is gone.
func (s *Service) Remove(ctx context.Context, name string) error {
	img, err := s.catalog.Drop(ctx, name, s.names(name))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	logrus.WithFields(logrus.Fields{"image": name, "id": img.ID}).Info("image is removed")
	s.cleaner.Wake()
	return nil
}

// cleanEvery is how often it is looked for what nothing needs: layers of containers that are gone, downloads that nobody has
// taken up.
const cleanEvery = 10 * time.Minute

// mendEvery is how often Mend is tried: each time may ask a registry.
const mendEvery = 6 * time.Hour

// CleanUp begins to run Collect and Mend in the background, now and then, Collect also after each removal, until Close. Without it,
// nothing is deleted.
func (s *Service) CleanUp(ctx context.Context) {
	s.mender.Start(ctx, mendEvery, s.Mend)
	s.cleaner.Start(ctx, cleanEvery, func(ctx context.Context) {
		if err := s.Collect(ctx); err != nil && ctx.Err() == nil {
			logrus.WithError(err).Warn("not all unused layers could be removed; it is tried again")
		}
	})
}

// collectStep is how many layers or blobs Collect deletes before it gives way, for as long as they took.
const collectStep = 32

// Collect deletes the layers and blobs that no image, container or pull needs, and downloads that nobody has taken up again. It
// does so in steps, and pulls go on meanwhile. After a loss of records it leaves layers and blobs alone for Config.KeepLost: the
// kubelet pulls the images again, and finds them.
func (s *Service) Collect(ctx context.Context) error {
	leave, err := take(ctx, s.collecting)
	if err != nil {
		return err
	}
	defer leave()
	stale := time.Now().Add(-s.config.KeepDownloads)
	if (s.lost || !s.catalog.Spared()) && time.Since(s.opened) < s.config.KeepLost {
		return s.downloads.Purge(ctx, stale)
	}
	layers, err := s.layers.ListLayers(ctx)
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	blobs, err := s.content.List()
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	return errors.Join(
		s.downloads.Purge(ctx, stale),
		s.collect(ctx, layers, s.removeLayer),
		s.collect(ctx, blobs, func(_ context.Context, d digest.Digest) error { return s.content.Delete(d) }),
	)
}

// removeLayer leaves what is a container's.
func (s *Service) removeLayer(ctx context.Context, d digest.Digest) error {
	err := s.layers.RemoveLayer(ctx, d)
	if errors.Is(err, snapshot.ErrInUse) {
		return nil
	}
	return err
}

// collect removes those of the digests that nothing needs.
func (s *Service) collect(ctx context.Context, digests []digest.Digest, remove func(context.Context, digest.Digest) error) error {
	var errs []error
	began, removed := time.Now(), 0
	for _, d := range digests {
		did, err := s.leases.Delete(d, s.catalog.Needs, func() error { return remove(ctx, d) })
		errs = append(errs, err)
		if did {
			removed++
		}
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
		if removed == collectStep {
			select {
			case <-time.After(time.Since(began)):
			case <-ctx.Done():
			}
			began, removed = time.Now(), 0
		}
	}
	return errors.Join(errs...)
}
