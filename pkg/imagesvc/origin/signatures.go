package origin

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/trust"
)

var _ trust.Source = Signatures{}

// Signatures are what a registry has of the signatures of an image: a trust.Source.
type Signatures struct{ *Remote }

// ManifestByTag implements trust.Source.
func (s Signatures) ManifestByTag(ctx context.Context, tag string) (mediaType string, data []byte, found bool, err error) {
	m, err := s.Remote.ManifestByTag(ctx, tag)
	if errors.Is(err, registry.ErrNotFound) {
		return "", nil, false, nil
	}
	return m.MediaType, m.Data, err == nil, err
}

// Referrers implements trust.Source.
func (s Signatures) Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	return s.Remote.Referrers(ctx, d, "")
}

// Manifest implements trust.Source.
func (s Signatures) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	m, err := s.Remote.Manifest(ctx, d)
	return m.Data, err
}

// maxSignature is the largest blob of a signature in bytes.
const maxSignature = 4 << 20

// Blob implements trust.Source.
func (s Signatures) Blob(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxSignature {
		return nil, fmt.Errorf("signature %s: %w: it has %d bytes, at most %d are read", d.Digest, trust.ErrRejected, d.Size, maxSignature)
	}
	return s.Content(ctx, d)
}
