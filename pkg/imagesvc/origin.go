package imagesvc

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/registry"
)

// origin is where an image comes from.
type origin interface {
	document.Origin
	// Layer opens the blob of a layer.
	Layer(ctx context.Context, d ocispec.Descriptor) (layerBlob, error)
	// CanTryElsewhere tells whether opening a layer again after damage may help.
	CanTryElsewhere() bool
}

// layerBlob is the blob of a layer while it arrives; see download.Blob.
type layerBlob interface {
	io.Reader
	Err() error
	Drain() error
	Fetched() int64
	Consumed() int64
	// CopyTo copies the blob, once it has been read to its end.
	CopyTo(w io.Writer) (int64, error)
	// Close ends the use of the blob and keeps what the next use of it can spare; Discard keeps nothing.
	Close() error
	Discard() error
}

// remote is the origin of a pull.
type remote struct {
	repo      *registry.Repository
	downloads *download.Store
}

func (r *remote) Manifest(ctx context.Context, d digest.Digest) (registry.Manifest, error) {
	return r.repo.Manifest(ctx, d)
}

func (r *remote) Content(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if len(d.Data) > 0 && int64(len(d.Data)) == d.Size && d.Digest.Algorithm().FromBytes(d.Data) == d.Digest {
		return d.Data, nil // image-spec, descriptor.md: embedded content
	}
	blob, err := r.repo.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

func (r *remote) Layer(ctx context.Context, d ocispec.Descriptor) (layerBlob, error) {
	return r.downloads.Open(ctx, d, func(ctx context.Context, offset, length int64) (download.Part, error) {
		return r.repo.Range(ctx, d, offset, length)
	})
}

func (r *remote) CanTryElsewhere() bool { return r.repo.CanTryElsewhere() }
