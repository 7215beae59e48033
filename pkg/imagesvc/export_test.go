package imagesvc

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// Waiters is how many callers share the pulls of a name.
func (s *Service) Waiters(name string) int {
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	n := 0
	for key, c := range s.pulls.calls {
		if strings.HasSuffix(key.ref, name) {
			n += c.waiters
		}
	}
	return n
}

// LayerWaiters is how many pulls wait for a layer.
func (s *Service) LayerWaiters(d digest.Digest) int {
	s.fetches.mu.Lock()
	defer s.fetches.mu.Unlock()
	if c := s.fetches.calls[d]; c != nil {
		return c.waiters
	}
	return 0
}
