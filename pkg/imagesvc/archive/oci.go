package archive

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/mediatype"
)

// annotationSubject marks what containerd adds to an archive for an image: signatures and the like, no images.
const annotationSubject = "io.containerd.manifest.subject"

// maxNested is how deep indexes are followed into indexes.
const maxNested = 2

// readLayout finds the images of index.json.
func (a *Archive) readLayout(ctx context.Context, s *spool, t *table) error {
	var layout ocispec.ImageLayout
	if err := json.Unmarshal(s.docs[ocispec.ImageLayoutFile], &layout); err != nil {
		return fmt.Errorf("decode oci-layout: %w: %w", ErrInvalid, err)
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("%w: it is an OCI layout of version %q, only %s is read", ErrInvalid, layout.Version, ocispec.ImageLayoutVersion)
	}
	data, ok := s.docs[ocispec.ImageIndexFile]
	if !ok {
		return fmt.Errorf("%w: it is an OCI layout without index.json", ErrInvalid)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("decode index.json: %w: %w", ErrInvalid, err)
	}
	for _, d := range index.Manifests {
		if _, ok := d.Annotations[annotationSubject]; ok || !mayBeImage(d.MediaType) {
			continue // the layout may hold anything (image-layout.md)
		}
		if err := a.readRoot(ctx, t, d); err != nil {
			return fmt.Errorf("index.json: %w", err)
		}
	}
	return nil
}

func mayBeImage(mediaType string) bool {
	return mediaType == "" || mediatype.IsManifest(mediaType) || mediatype.IsIndex(mediaType)
}

// readRoot adds the image of a descriptor in index.json.
func (a *Archive) readRoot(ctx context.Context, t *table, d ocispec.Descriptor) error {
	names, tag, err := namesOf(d.Annotations)
	if err != nil {
		return err
	}
	if i, ok := t.at[d.Digest]; ok {
		t.include(t.images[i].Root, names, tag)
		return nil
	}
	if err := checkDescriptor(d); err != nil {
		return err
	}
	mediaType, data, err := a.Manifest(ctx, d.Digest)
	switch {
	case isMissing(err):
		return fmt.Errorf("%w: it names the manifest %s, which is missing", ErrInvalid, d.Digest)
	case err != nil:
		return err
	case int64(len(data)) != d.Size:
		return fmt.Errorf("%w: the manifest %s has %d bytes, it says %d", ErrInvalid, d.Digest, len(data), d.Size)
	case d.MediaType != "" && mediatype.IsIndex(mediaType) != mediatype.IsIndex(d.MediaType):
		return fmt.Errorf("%w: %s is of media type %s, it says %s", ErrInvalid, d.Digest, mediaType, d.MediaType)
	}
	t.include(ocispec.Descriptor{MediaType: mediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}, names, tag)
	return nil
}

// configs adds to known the configurations of an image, of all its platforms that the archive holds. What was seen before is
// not looked at again: indexes that name each other over and over would never end.
func (a *Archive) configs(ctx context.Context, root digest.Digest, depth int, seen, known map[digest.Digest]bool) error {
	if seen[root] {
		return nil
	}
	seen[root] = true
	mediaType, data, err := a.Manifest(ctx, root)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if mediatype.IsManifest(mediaType) {
		var m ocispec.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return fmt.Errorf("decode manifest %s: %w: %w", root, ErrInvalid, err)
		}
		known[m.Config.Digest] = true
		return nil
	}
	if depth == maxNested {
		return nil
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("decode index %s: %w: %w", root, ErrInvalid, err)
	}
	for _, d := range index.Manifests {
		if !mayBeImage(d.MediaType) {
			continue
		}
		if err := a.configs(ctx, d.Digest, depth+1, seen, known); err != nil {
			return err
		}
	}
	return nil
}
