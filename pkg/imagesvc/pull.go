package imagesvc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/registry"
)

// pullKey tells pulls that may be one: callers with other credentials must not be let in by those of the first.
type pullKey struct {
	ref  string
	auth registry.Auth
}

// Pull fetches an image and returns its ID. Equal pulls at the same time are one. It has no deadline but the no-progress
// timeout of the registry client; cancelling the last caller's ctx ends it. The registry is asked each time whether
// the credentials are good for the image, also when nothing is to be fetched. Its errors are those of pkg/imagesvc/registry,
// and ErrInvalid.
//
// A short name may stand for several, which are tried in order.
func (s *Service) Pull(ctx context.Context, name string, auth registry.Auth) (string, error) {
	refs, err := s.registry.Names(name)
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
		texts = append(texts, err.Error())
	}
	if len(texts) > 1 {
		err = fmt.Errorf("%s may be one of %d images: %s; %w", name, len(texts), strings.Join(texts[:len(texts)-1], "; "), err)
	}
	return "", err
}

// pullShared joins an equal pull under way, or is one.
func (s *Service) pullShared(ctx context.Context, ref registry.Reference, auth registry.Auth) (string, error) {
	id, _, err := s.pulls.do(ctx, pullKey{ref.String(), auth}, func(ctx context.Context) (digest.Digest, error) {
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

// pull is the way of an image onto the node.
func (s *Service) pull(ctx context.Context, ref registry.Reference, auth registry.Auth) (digest.Digest, error) {
	repo, err := s.registry.Repository(ref, auth)
	if err != nil {
		return "", err
	}
	if id, ok := s.unchanged(ctx, repo, ref); ok {
		return id, nil
	}
	src, err := read(ctx, repo)
	if err != nil {
		return "", err
	}
	config := src.parsed.Config.Digest
	release, err := s.lease(ctx, slices.Concat([]digest.Digest{config, src.manifest.Digest}, src.config.RootFS.DiffIDs))
	if err != nil {
		return "", err
	}
	defer release()
	if err := s.fetchLayers(ctx, src); err != nil {
		return "", err
	}
	if err := s.content.Write(src.manifest.Digest, src.manifest.Data); err != nil {
		return "", err
	}
	if err := s.content.Write(config, src.raw); err != nil {
		return "", err
	}
	img := Image{
		ID: config, Manifest: src.manifest.Digest, Size: src.size(), Config: src.config, DiffIDs: src.config.RootFS.DiffIDs,
		Annotations: src.parsed.Annotations, Pulled: time.Now().Round(0),
	}
	return config, s.put(ctx, img, ref, src.resolved.Digest)
}

// unchanged asks the registry for no more than a digest when the name is known here: on most pulls of policy Always there
// is nothing to do, and registries count fetches of manifests against their limits, but not questions for digests.
func (s *Service) unchanged(ctx context.Context, repo *registry.Repository, ref registry.Reference) (digest.Digest, bool) {
	s.mu.RLock()
	img, known := named(s.images, ref)
	s.mu.RUnlock()
	if !known {
		return "", false
	}
	// What goes wrong now is told by the fetch that follows.
	d, err := repo.Digest(ctx)
	if err != nil || d == "" || !slices.Contains(img.Digests, ref.WithDigest(d).String()) {
		return "", false
	}
	logrus.WithField("image", ref.String()).Debug("image has not changed")
	return img.ID, true
}

// named finds the image that a reference names.
func named(images map[digest.Digest]Image, ref registry.Reference) (Image, bool) {
	for _, img := range images {
		if slices.Contains(img.Tags, ref.String()) || slices.Contains(img.Digests, ref.String()) {
			return img, true
		}
	}
	return Image{}, false
}

// minPrefix is the shortest prefix of an ID that is taken for one.
const minPrefix = 6

// names are what a name may stand for, nothing if it is not a reference.
func (s *Service) names(name string) []registry.Reference {
	refs, err := s.registry.Names(name)
	if err != nil {
		return nil
	}
	return refs
}

// find looks an image up among some, see Resolve. refs are what the name may stand for.
func find(images map[digest.Digest]Image, name string, refs []registry.Reference) (Image, error) {
	if img, ok := images[digest.Digest(name)]; ok {
		return img, nil
	}
	hex := strings.TrimPrefix(name, "sha256:")
	if img, ok := images[digest.Digest("sha256:"+hex)]; ok {
		return img, nil
	}
	for _, ref := range refs {
		if img, ok := named(images, ref); ok {
			return img, nil
		}
	}
	var found []Image
	if len(hex) >= minPrefix && strings.Trim(hex, "0123456789abcdef") == "" {
		for id, img := range images {
			if strings.HasPrefix(id.Encoded(), hex) {
				found = append(found, img)
			}
		}
	}
	switch len(found) {
	case 0:
		return Image{}, fmt.Errorf("%q: %w", name, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Image{}, fmt.Errorf("%w: %d images have IDs that begin with %s", ErrInvalid, len(found), hex)
}
