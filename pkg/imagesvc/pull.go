package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/imagesvc/catalog"
	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/progress"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/restore"
)

// pullKey tells pulls that may be one: callers with other credentials must not be let in by those of the first.
type pullKey struct {
	ref  string
	auth registry.Auth
}

// Pull fetches an image and returns its ID. Equal pulls at the same time are one. It has no deadline but the no-progress
// timeout of the registry client; cancelling the last caller's ctx ends it. The registry is asked each time whether
// the credentials are good for the image, also when nothing is to be fetched. Its errors are those of pkg/imagesvc/registry,
// ErrInvalid, ErrNoSpace and ErrUntrusted.
//
// A short name may stand for several, which are tried in order, each if those before are not there.
func (s *Service) Pull(ctx context.Context, name string, auth registry.Auth) (string, error) {
	client := s.settings.Load().Registry
	refs, err := client.Names(name)
	if err != nil {
		return "", fmt.Errorf("pull: %w: %w", ErrInvalid, err)
	}
	auth = registry.AuthFor(name, auth)
	var texts []string
	for _, ref := range refs {
		var id string
		if id, err = s.pullShared(ctx, ref, auth); err == nil || ctx.Err() != nil {
			return id, err
		}
		if texts = append(texts, err.Error()); !client.PassOver(ctx, ref, auth, err) {
			break
		}
	}
	if len(texts) > 1 {
		err = fmt.Errorf("%s may be one of %d images: %s; %w", name, len(refs), strings.Join(texts[:len(texts)-1], "; "), err)
	}
	if len(texts) < len(refs) {
		err = fmt.Errorf("%w; the search ends here, since it may be the one that is meant: write the whole name, or an alias in registry.short_names", err)
	}
	return "", err
}

// pullShared joins an equal pull under way, or is one.
func (s *Service) pullShared(ctx context.Context, ref registry.Reference, auth registry.Auth) (string, error) {
	id, _, err := s.pulls.Do(ctx, pullKey{ref.String(), auth}, func(ctx context.Context) (digest.Digest, error) {
		start := time.Now()
		id, err := s.pull(ctx, ref, auth)
		log := logrus.WithFields(logrus.Fields{"image": ref.String(), "took": time.Since(start).Round(time.Millisecond)})
		if err != nil {
			log.WithError(err).Warn("pull failed")
			return id, err
		}
		log.WithField("id", id).Info("image is pulled")
		return id, nil
	})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	return id.String(), nil
}

// pull is the way of an image from a registry onto the node.
func (s *Service) pull(ctx context.Context, ref registry.Reference, auth registry.Auth) (id digest.Digest, err error) {
	watched := s.progress.Begin(ref.String())
	defer func() { watched.End(err); s.cleaner.WakeAfter(err) }()
	repo, err := s.settings.Load().Registry.Repository(ref, auth)
	if err != nil {
		return "", err
	}
	from := &origin.Remote{Repository: repo, Downloads: s.downloads}
	if id, resolved, ok := s.unchanged(ctx, repo, ref); ok {
		err := s.trusted(ctx, from, ref, resolved)
		// It may have been removed while the registry was asked.
		if img, known := s.known(ref); err != nil || known && img.ID == id {
			return id, err
		}
	}
	docs, err := document.Read(ctx, from)
	if err != nil {
		return "", err
	}
	if err := s.trusted(ctx, from, ref, docs.Resolved.Digest); err != nil {
		return "", err
	}
	release, err := s.leases.Hold(ctx, restore.Parts(docs))
	if err != nil {
		return "", err
	}
	defer release()
	img, err := s.fetchImage(ctx, from, docs, watched)
	if err != nil {
		return "", err
	}
	return img.ID, s.put(ctx, img, catalog.Name{Ref: ref, Resolved: docs.Resolved.Digest})
}

// fetchImage makes all of an image but its record. The caller holds a lease of its parts until that is written.
func (s *Service) fetchImage(ctx context.Context, from origin.Origin, docs *document.Image, watched *progress.Tracked) (Image, error) {
	if err := s.fetchLayers(ctx, from, docs, watched); err != nil {
		return Image{}, s.noSpace(ctx, err)
	}
	if err := s.restorer.Keep(docs); err != nil {
		return Image{}, s.noSpace(ctx, err)
	}
	return s.restorer.Image(docs), nil
}

// noSpace gives back what a full disk can do without, and says that it was full.
func (s *Service) noSpace(ctx context.Context, err error) error {
	if !isNoSpace(err) {
		return err
	}
	if perr := s.downloads.Purge(context.WithoutCancel(ctx), time.Now()); perr != nil {
		logrus.WithError(perr).Warn("aborted downloads could not be removed from a full disk")
	}
	return fmt.Errorf("%w below %s: remove images or enlarge the file system: %w", ErrNoSpace, s.config.Root, err)
}

func isNoSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// unchanged asks the registry for no more than a digest when the name is known here: on most pulls of policy Always there
// is nothing to do, and registries count fetches of manifests against their limits, but not questions for digests.
func (s *Service) unchanged(ctx context.Context, repo *registry.Repository, ref registry.Reference) (id, resolved digest.Digest, ok bool) {
	img, known := s.known(ref)
	if !known || s.look(ctx, img) != nil {
		return "", "", false
	}
	// What goes wrong now is told by the fetch that follows.
	d, err := repo.Digest(ctx)
	if err != nil || d == "" || !slices.Contains(img.Digests, ref.WithDigest(d).String()) {
		return "", "", false
	}
	logrus.WithField("image", ref.String()).Debug("image has not changed")
	return img.ID, d, true
}

func (s *Service) known(ref registry.Reference) (Image, bool) {
	img, err := s.catalog.Find(ref.String(), []registry.Reference{ref})
	return img, err == nil
}
