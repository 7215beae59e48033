package registry

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	"criserver/pkg/imagesvc/registry/credential"
)

// Auth is a credential as it comes with a pull (CRI AuthConfig). It is secret: no error tells any of it.
type Auth = credential.Auth

// isFor tells whether a credential may be sent to a registry.
func isFor(a Auth, domain string) bool {
	if a.ServerAddress == "" {
		return true
	}
	address := a.ServerAddress
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	return err == nil && apiHost(u.Host) == apiHost(domain)
}

func newStore(c Config) (*credential.Store, error) {
	s, err := credential.New(credential.Config{Hosts: c.Auth, DockerConfigs: c.DockerConfigs, Provider: c.Providers})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return s, nil
}

// secrets are what no message of a pull may tell: credentials, and the tokens that were got for them.
type secrets struct {
	mu  sync.Mutex
	all []string
}

func newSecrets(c Config, a Auth) *secrets {
	s := &secrets{}
	s.add(a.Secrets()...)
	for _, configured := range c.Auth {
		s.add(configured.Secrets()...)
	}
	return s
}

func (s *secrets) add(more ...string) {
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

func (s *secrets) redact(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.all {
		text = strings.ReplaceAll(text, secret, "…")
	}
	return text
}
