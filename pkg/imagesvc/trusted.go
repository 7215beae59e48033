package imagesvc

import (
	"context"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/trust"
)

// Policy says which images may be used; see trust.Policy.
type Policy interface {
	Required(repository string) bool
	Check(ctx context.Context, repository string, d digest.Digest, from trust.Source) error
}

// trusted says ErrUntrusted unless the policy lets an image be used. The signatures are of what the reference stands for.
func (s *Service) trusted(ctx context.Context, from *origin.Remote, ref registry.Reference, d digest.Digest) error {
	if s.config.Policy == nil || !s.config.Policy.Required(ref.Name()) {
		return nil
	}
	return s.config.Policy.Check(ctx, ref.Name(), d, origin.Signatures{Remote: from})
}
