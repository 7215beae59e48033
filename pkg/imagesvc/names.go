package imagesvc

import (
	"context"
	"fmt"

	"criserver/pkg/imagesvc/catalog"
	"criserver/pkg/imagesvc/registry"
)

// names are what a name may stand for, nothing if it is not a reference.
func (s *Service) names(name string) []registry.Reference {
	if refs, err := s.settings.Load().Registry.Names(name); err == nil {
		return refs
	}
	return nil
}

// put makes an image visible under its old names and new ones, which others may have had.
func (s *Service) put(ctx context.Context, img Image, names ...catalog.Name) error {
	if err := s.catalog.Put(ctx, img, names...); err != nil {
		return s.noSpace(ctx, err)
	}
	return nil
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
	if err := s.put(ctx, img, catalog.Name{Ref: ref}); err != nil {
		return Image{}, fmt.Errorf("tag %s: %w", source, err)
	}
	return s.Resolve(target)
}
