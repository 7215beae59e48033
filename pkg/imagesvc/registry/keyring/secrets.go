package keyring

import (
	"slices"
	"strings"
	"sync"
)

// Secrets are what no message of a pull may tell: credentials, and the tokens that were got for them.
type Secrets struct {
	mu  sync.Mutex
	all []string
}

// Add adds some; the empty string is none.
func (s *Secrets) Add(more ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range more {
		if secret != "" && !slices.Contains(s.all, secret) {
			s.all = append(s.all, secret)
		}
	}
	// The longer first: one may be the beginning of another.
	slices.SortFunc(s.all, func(a, b string) int { return len(b) - len(a) })
}

// Redact takes them out of a text.
func (s *Secrets) Redact(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.all {
		text = strings.ReplaceAll(text, secret, "…")
	}
	return text
}
