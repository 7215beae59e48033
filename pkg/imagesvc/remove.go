package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"criserver/pkg/snapshot"
)

// Remove removes an image with all its names, in every repository (CRI, RemoveImage). It is idempotent: ErrNotFound is
// no error of it. The image is out of sight when Remove returns; its space is freed in the background, and that of layers
// that a container uses when the container is gone.
func (s *Service) Remove(ctx context.Context, name string) error {
	img, err := s.drop(ctx, name)
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

// drop takes an image out of the records and out of sight.
func (s *Service) drop(ctx context.Context, name string) (Image, error) {
	leave, err := take(ctx, s.writing)
	if err != nil {
		return Image{}, err
	}
	defer leave()
	refs := s.names(name)
	s.mu.RLock()
	img, err := find(s.images, name, refs)
	if errors.Is(err, ErrNotFound) {
		img, err = find(s.broken, name, refs)
	}
	s.mu.RUnlock()
	if err != nil {
		return img, err
	}
	if err := s.table.Delete(ctx, img.ID.String()); err != nil {
		return img, fmt.Errorf("remove image %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, img.ID)
	delete(s.broken, img.ID)
	return img, nil
}

// lease keeps Collect off blobs and layers that a pull counts on, until the returned function is called. Those that are
// being deleted just now are waited for.
func (s *Service) lease(ctx context.Context, digests []digest.Digest) (func(), error) {
	s.mu.Lock()
	for _, d := range digests {
		s.leases[d]++
	}
	var busy []chan struct{}
	for _, d := range digests {
		if done, ok := s.deleting[d]; ok {
			busy = append(busy, done)
		}
	}
	s.mu.Unlock()
	release := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range digests {
			if s.leases[d]--; s.leases[d] == 0 {
				delete(s.leases, d)
			}
		}
	}
	for _, done := range busy {
		select {
		case <-done:
		case <-ctx.Done():
			release()
			return nil, context.Cause(ctx)
		}
	}
	return release, nil
}

// cleanEvery is how often it is looked for what nothing needs: layers of containers that are gone, downloads that nobody has
// taken up.
const cleanEvery = 10 * time.Minute

// CleanUp begins to run Collect in the background, after the delay, now and then, and after each removal, until Close. Without it,
// nothing is deleted.
func (s *Service) CleanUp(ctx context.Context, delay time.Duration) {
	s.cleaner.Start(ctx, delay, cleanEvery, func(ctx context.Context) {
		if err := s.Collect(ctx); err != nil && ctx.Err() == nil {
			logrus.WithError(err).Warn("not all unused layers could be removed; it is tried again")
		}
	})
}

// Collect deletes the layers and blobs that no image, container or pull needs, and downloads that nobody has taken up again.
// Pulls go on meanwhile.
func (s *Service) Collect(ctx context.Context) error {
	leave, err := take(ctx, s.collecting)
	if err != nil {
		return err
	}
	defer leave()
	layers, err := s.layers.ListLayers(ctx)
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	blobs, err := s.content.List()
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	errs := []error{s.downloads.Purge(ctx, time.Now().Add(-s.config.KeepDownloads))}
	for _, d := range layers {
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
		errs = append(errs, s.collect(d, func() error {
			err := s.layers.RemoveLayer(ctx, d)
			if errors.Is(err, snapshot.ErrInUse) {
				return nil // of a container
			}
			return err
		}))
	}
	for _, d := range blobs {
		errs = append(errs, s.collect(d, func() error { return s.content.Delete(d) }))
	}
	return errors.Join(errs...)
}

// collect deletes a layer or blob by fn if nothing needs it. The decision and its mark are one step, so that a pull either
// keeps it or waits until it is gone.
func (s *Service) collect(d digest.Digest, fn func() error) error {
	s.mu.Lock()
	if s.needed(d) {
		s.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	s.deleting[d] = done
	s.mu.Unlock()
	err := fn()
	s.mu.Lock()
	delete(s.deleting, d)
	s.mu.Unlock()
	close(done)
	return err
}

// needed tells whether an image or a pull under way counts on a layer or blob. It needs the lock.
func (s *Service) needed(d digest.Digest) bool {
	if s.leases[d] > 0 {
		return true
	}
	for _, all := range []map[digest.Digest]Image{s.images, s.broken} {
		for _, img := range all {
			if img.ConfigBlob == d || img.Manifest == d || slices.Contains(img.DiffIDs, d) || slices.Contains(img.Blobs, d) {
				return true
			}
		}
	}
	return false
}
