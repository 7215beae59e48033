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
	policy := s.settings.Load().Policy
	if policy == nil || !policy.Required(ref.Name()) {
		return nil
	}
	return policy.Check(ctx, ref.Name(), d, origin.Signatures{Remote: from})
}
