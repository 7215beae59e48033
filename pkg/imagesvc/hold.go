package imagesvc

import (
	"cmp"
	"context"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/outgoing"
	"criserver/pkg/snapshot"
)

// hold finds an image and keeps its parts from removal until release is called. ErrNotFound.
func (s *Service) hold(ctx context.Context, name string) (img Image, release func(), err error) {
	if img, err = s.Resolve(name); err != nil {
		return img, nil, err
	}
	release, err = s.leases.Hold(ctx, img.Parts())
	if err != nil {
		return img, nil, err
	}
	// Again, under the lease: a removal may have come between.
	if img, err = s.Resolve(img.ID.String()); err != nil {
		release()
	}
	return img, release, err
}

// outgoing is an image as it is given on. The caller holds it.
func (s *Service) outgoing(img Image) (outgoing.Image, error) {
	const hint = `run "criserver image check --repair"`
	out := outgoing.Image{ID: img.ID, Layers: img.DiffIDs, Kept: img.Blobs, Artifact: img.Artifact}
	var err error
	if out.ManifestData, err = s.content.Read(img.Manifest); err != nil {
		return out, fmt.Errorf("manifest of image %s: %w; %s", img.ID, err, hint)
	}
	if out.ConfigData, err = s.content.Read(img.ConfigBlob); err != nil {
		return out, fmt.Errorf("configuration of image %s: %w; %s", img.ID, err, hint)
	}
	out.Manifest = ocispec.Descriptor{Digest: img.Manifest, Size: int64(len(out.ManifestData))}
	out.Manifest.MediaType = cmp.Or(document.MediaType(out.ManifestData), ocispec.MediaTypeImageManifest)
	return out, nil
}

// store is where the parts of images that are given on are.
func (s *Service) store() *outgoing.Store {
	trees, _ := s.layers.(snapshot.Trees)
	return &outgoing.Store{Content: s.content, Trees: trees, Dir: s.config.Root, Parallel: s.config.ParallelLayers}
}
