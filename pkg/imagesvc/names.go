package imagesvc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/registry"
)

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
	if refs, err := s.settings.Load().Registry.Names(name); err == nil {
		return refs
	}
	return nil
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

// name is a name that an image gets.
type name struct {
	ref registry.Reference
	// resolved is the digest that the reference stands for: of the image's manifest, or of an index that has it.
	resolved digest.Digest
}

// put makes an image visible under its old names and new ones. Its record is written first, then those of images that a tag
// named before: interrupted, the tag is with both, and load decides.
func (s *Service) put(ctx context.Context, img Image, names ...name) error {
	leave, err := take(ctx, s.writing)
	if err != nil {
		return err
	}
	defer leave()
	img, others := s.retag(img, names)
	if err := s.table.Put(ctx, img.ID.String(), img); err != nil {
		return s.noSpace(ctx, err)
	}
	s.mu.Lock()
	s.images[img.ID] = img
	delete(s.broken, img.ID)
	for _, other := range others {
		if _, ok := s.broken[other.ID]; ok {
			s.broken[other.ID] = other
		} else {
			s.images[other.ID] = other
		}
	}
	s.mu.Unlock()
	for _, other := range others {
		if err := s.table.Put(ctx, other.ID.String(), other); err != nil {
			// The pull has done its work; load would come to the same result.
			logrus.WithError(err).WithField("image", other.ID).Warn("moving a tag is recorded on one side only")
		}
	}
	return nil
}

// retag gives the image its names, old and new, and returns with it those that lose one.
func (s *Service) retag(img Image, names []name) (Image, map[digest.Digest]Image) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	old, ok := s.images[img.ID]
	if !ok {
		old = s.broken[img.ID]
	}
	img.Tags, img.Digests = slices.Clone(old.Tags), slices.Clone(old.Digests)
	others := map[digest.Digest]Image{}
	for _, n := range names {
		if n.resolved != "" {
			img.Digests = insert(img.Digests, n.ref.WithDigest(n.resolved).String())
		}
		if n.ref.Tag() == "" {
			continue
		}
		tag := n.ref.String()
		img.Tags = insert(img.Tags, tag)
		for _, all := range []map[digest.Digest]Image{s.images, s.broken} {
			for id, other := range all {
				if changed, ok := others[id]; ok {
					other = changed
				}
				if id != img.ID && slices.Contains(other.Tags, tag) {
					other.Tags = slices.DeleteFunc(slices.Clone(other.Tags), func(t string) bool { return t == tag })
					others[id] = other
				}
			}
		}
	}
	return img, others
}

// Tag gives an image one more name, which another may have had. ErrNotFound, ErrInvalid.
func (s *Service) Tag(ctx context.Context, source, target string) (Image, error) {
	ref, err := s.settings.Load().Registry.Tagged(target, "tagged")
	if err != nil {
		return Image{}, fmt.Errorf("tag: %w: %w", ErrInvalid, err)
	}
	img, release, err := s.hold(ctx, source)
	if err != nil {
		return Image{}, fmt.Errorf("tag: %w", err)
	}
	defer release()
	if err := s.put(ctx, img, name{ref: ref}); err != nil {
		return Image{}, fmt.Errorf("tag %s: %w", source, err)
	}
	return s.Resolve(target)
}

// insert puts a value into a sorted list, once.
func insert[T cmp.Ordered](list []T, v T) []T {
	if slices.Contains(list, v) {
		return list
	}
	list = append(list, v)
	slices.Sort(list)
	return list
}
