package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/catalog"
	"criserver/pkg/imagesvc/content"
)

// unsound tells of the records that are, and makes them anew.
func (c *checking) unsound(ctx context.Context) error {
	for _, u := range c.s.catalog.Unsound() {
		f := Finding{Kind: FindingRecord, Name: u.Key, Problem: u.Problem}
		if u.ID().Validate() == nil {
			f.Images = []digest.Digest{u.ID()}
		}
		if err := c.found(ctx, f, func(ctx context.Context) (string, error) { return c.repairRecord(ctx, u) }); err != nil {
			return err
		}
	}
	return nil
}

// record compares a record with the documents. That those are missing or damaged, blob says.
func (c *checking) record(ctx context.Context, id digest.Digest) error {
	img := c.images[id]
	docs, err := c.s.restorer.Documents(ctx, img.Manifest)
	var problem string
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrDamaged):
		return nil
	case err != nil:
		problem = "it names a manifest that is none: " + err.Error()
	case docs.ID() != id:
		problem = fmt.Sprintf("its manifest is that of image %s", docs.ID())
	default:
		made := c.s.restorer.Image(docs)
		// Of its blobs, those that a layer may have: that one is missing, blob says.
		made.Blobs = slices.DeleteFunc(slices.Clone(img.Blobs), func(d digest.Digest) bool {
			return !slices.ContainsFunc(docs.Parsed.Layers, func(l ocispec.Descriptor) bool { return l.Digest == d })
		})
		differences := catalog.Differences(img, made)
		if len(differences) == 0 {
			return nil
		}
		problem = "it differs from manifest and configuration in " + strings.Join(differences, ", ")
	}
	f := Finding{Kind: FindingRecord, Name: id.String(), Images: []digest.Digest{id}, Problem: problem}
	return c.found(ctx, f, func(ctx context.Context) (string, error) {
		return c.repairRecord(ctx, catalog.Unsound{Key: id.String(), Image: img, Named: true})
	})
}

// repairRecord has the image looked at as the others are.
func (c *checking) repairRecord(ctx context.Context, u catalog.Unsound) (string, error) {
	img, action, err := c.s.restorer.Repair(ctx, u)
	if err != nil {
		return action, c.s.noSpace(ctx, err)
	}
	_ = c.s.look(ctx, img) // which logs it
	if _, ok := c.images[img.ID]; ok {
		c.images[img.ID] = img
	}
	return action, nil
}
