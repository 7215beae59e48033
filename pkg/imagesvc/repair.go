package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/snapshot"
)

// errNoSource: an image has no name by which a registry could be asked for it.
var errNoSource = errors.New("no registry is known to have it; pull or import the image again")

// source is an image as a registry has it now.
type source struct {
	from *origin.Remote
	docs *document.Image
}

// sourceOf asks the registries that an image is known to be from for it, by digest.
func (s *Service) sourceOf(ctx context.Context, img Image) (*source, error) {
	errs := []error{}
	for _, name := range img.Digests {
		ref, err := registry.Parse(name)
		if err != nil {
			continue
		}
		repo, err := s.settings.Load().Registry.Repository(ref, registry.Auth{})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		from := &origin.Remote{Repository: repo, Downloads: s.downloads}
		docs, err := document.Read(ctx, from)
		if err == nil && docs.ID() != img.ID {
			err = fmt.Errorf("%s is another image now", name)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return &source{from, docs}, nil
	}
	if len(errs) == 0 {
		return nil, errNoSource
	}
	return nil, errors.Join(errs...)
}

// repairBlob fetches a document, or a kept layer, anew.
func (c *checking) repairBlob(ctx context.Context, d digest.Digest) (string, error) {
	var errs []error
	for _, id := range c.blobs[d] {
		src, err := c.s.sourceOf(ctx, c.images[id])
		if err == nil {
			err = src.restore(ctx, c.s, d)
		}
		if err == nil {
			return "fetched again", nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// restore writes a blob of the image into the content store.
func (src *source) restore(ctx context.Context, s *Service, d digest.Digest) error {
	switch d {
	case src.docs.Manifest.Digest:
		return s.content.Write(d, src.docs.Manifest.Data)
	case src.docs.Parsed.Config.Digest:
		return s.content.Write(d, src.docs.RawConfig)
	}
	for _, desc := range src.docs.Parsed.Layers {
		if desc.Digest != d {
			continue
		}
		blob, err := src.from.Layer(ctx, desc)
		if err != nil {
			return err
		}
		if err := blob.Drain(); err != nil {
			return errors.Join(cause(desc.Size, blob, err), blob.Close())
		}
		return errors.Join(s.content.WriteFrom(d, blob.CopyTo), blob.Discard())
	}
	return fmt.Errorf("the image there does not have %s", d)
}

// repairLayer unpacks a layer anew, from a kept blob if there is one.
func (c *checking) repairLayer(ctx context.Context, d digest.Digest) (string, error) {
	var errs []error
	for _, id := range c.layers[d] {
		i, desc, err := c.layerOf(c.images[id], d)
		if err != nil || c.s.content.Verify(ctx, desc.Digest) != nil {
			continue
		}
		job := layerJob{from: c.s.kept(), desc: desc, chain: c.images[id].DiffIDs[:i+1]}
		if err := c.s.again(ctx, job); err != nil {
			errs = append(errs, err)
			continue
		}
		return "unpacked again from the kept blob", nil
	}
	for _, id := range c.layers[d] {
		src, err := c.s.sourceOf(ctx, c.images[id])
		if err == nil {
			i := slices.Index(src.docs.Layers, d)
			job := layerJob{from: src.from, desc: src.docs.Parsed.Layers[i], chain: src.docs.Layers[:i+1]}
			if src.docs.Artifact {
				job.file = src.docs.Files[i]
			}
			err = c.s.again(ctx, job)
		}
		if err == nil {
			return "fetched and unpacked again", nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// again makes a layer that is missing, or there but damaged. It joins what else may be at the layer.
func (s *Service) again(ctx context.Context, job layerJob) error {
	job, key, leave := s.join(job)
	defer leave()
	_, _, err := s.fetches.Do(ctx, key, func(ctx context.Context) (struct{}, error) {
		stage, err := s.layers.(snapshot.Trees).Restage(ctx, job.chain)
		if errors.Is(err, snapshot.ErrNotFound) {
			stage, err = s.layers.Stage(ctx, job.chain)
		}
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, s.fill(ctx, stage, job)
	})
	return err
}

// kept is the origin of layers whose blobs are kept.
func (s *Service) kept() origin.Origin {
	return &origin.Local{Open: func(d ocispec.Descriptor) (*os.File, error) {
		f, _, err := s.content.Open(d.Digest)
		return f, err
	}}
}
