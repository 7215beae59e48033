package imagesvc

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// Waiters is how many callers share the pulls of a name.
func (s *Service) Waiters(name string) int {
	return s.pulls.Waiters(func(key pullKey) bool { return strings.HasSuffix(key.ref, name) })
}

// LayerWaiters is how many pulls wait for a layer.
func (s *Service) LayerWaiters(d digest.Digest) int {
	return s.fetches.Waiters(func(key fetchKey) bool { return key.layer == d })
}
