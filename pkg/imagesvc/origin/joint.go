package origin

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/sources"
)

// joint is a layer of images of several registries.
type joint struct {
	*sources.Sources
	downloads *download.Store
}

// Join has an image take part in the fetch of a layer, and that of others in its own, until leave is called. Only images of
// registries do; of others from is returned as it is.
func Join(t *sources.Table, from Layers, d digest.Digest) (all Layers, joined bool, leave func()) {
	remote, ok := from.(*Remote)
	if !ok {
		return from, false, func() {}
	}
	shared, leave := t.Join(d, remote)
	return &joint{shared, remote.Downloads}, true, leave
}

// Layer implements Layers.
func (j *joint) Layer(ctx context.Context, d ocispec.Descriptor) (Blob, error) {
	return j.downloads.Open(ctx, d, func(ctx context.Context, offset, length int64) (download.Part, error) {
		return j.Part(ctx, d, offset, length)
	})
}
