package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/restore"
	"criserver/pkg/snapshot"
)

// repairBlob fetches a document, or a kept layer, anew.
func (c *checking) repairBlob(ctx context.Context, d digest.Digest) (string, error) {
	var errs []error
	for _, id := range c.blobs[d] {
		src, err := c.s.restorer.Source(ctx, id, c.images[id].Digests)
		if err == nil {
			err = c.s.restore(ctx, src, d)
		}
		if err == nil {
			return "fetched again", nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// restore writes a blob of the image into the content store.
func (s *Service) restore(ctx context.Context, src *restore.Source, d digest.Digest) error {
	switch d {
	case src.Docs.Manifest.Digest:
		return s.content.Write(d, src.Docs.Manifest.Data)
	case src.Docs.Parsed.Config.Digest:
		return s.content.Write(d, src.Docs.RawConfig)
	}
	for _, desc := range src.Docs.Parsed.Layers {
		if desc.Digest != d {
			continue
		}
		from, _, leave := origin.Join(&s.sources, src.From, d)
		defer leave()
		return origin.Again(ctx, from, func() error { return s.restoreLayer(ctx, from, desc) })
	}
	return fmt.Errorf("the image there does not have %s", d)
}

func (s *Service) restoreLayer(ctx context.Context, from origin.Layers, desc ocispec.Descriptor) error {
	blob, err := from.Layer(ctx, desc)
	if err != nil {
		return err
	}
	if err := blob.Drain(); err != nil {
		return errors.Join(cause(desc.Size, blob, err), blob.Close())
	}
	copied := func(w io.Writer) (int64, error) { return origin.Copy(ctx, w, blob, from, desc) }
	return errors.Join(s.content.WriteFrom(desc.Digest, copied), blob.Discard())
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
		src, err := c.s.restorer.Source(ctx, id, c.images[id].Digests)
		if err == nil && !slices.Contains(src.Docs.Layers, d) { // its record is wrong, and could not be repaired
			err = fmt.Errorf("image %s does not have %s", id, d)
		}
		if err == nil {
			i := slices.Index(src.Docs.Layers, d)
			job := layerJob{from: src.From, desc: src.Docs.Parsed.Layers[i], chain: src.Docs.Layers[:i+1]}
			if src.Docs.Artifact {
				job.file = src.Docs.Files[i]
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
