package image

import (
	"bytes"
	"context"
	"fmt"

	"oras.land/oras-go/v2/registry/remote"
)

// Push uploads img to http://registry/repository and gives it the tag. Blobs that are there already are
// not sent again.
func (img *Image) Push(ctx context.Context, registry, repository, tag string) error {
	repo, err := remote.NewRepository(registry + "/" + repository)
	if err != nil {
		return fmt.Errorf("push %s: %w", repository, err)
	}
	repo.PlainHTTP = true
	for _, b := range img.Blobs {
		there, err := repo.Blobs().Exists(ctx, b.Descriptor)
		if err != nil {
			return fmt.Errorf("look up blob %s in %s: %w", b.Digest, repository, err)
		}
		if there {
			continue
		}
		if err := repo.Blobs().Push(ctx, b.Descriptor, bytes.NewReader(b.Data)); err != nil {
			return fmt.Errorf("push blob %s to %s: %w", b.Digest, repository, err)
		}
	}
	for _, m := range img.Manifests {
		if err := repo.Manifests().Push(ctx, m.Descriptor, bytes.NewReader(m.Data)); err != nil {
			return fmt.Errorf("push manifest %s to %s: %w", m.Digest, repository, err)
		}
	}
	if err := repo.Manifests().PushReference(ctx, img.Root.Descriptor, bytes.NewReader(img.Root.Data), tag); err != nil {
		return fmt.Errorf("push %s:%s: %w", repository, tag, err)
	}
	return nil
}
