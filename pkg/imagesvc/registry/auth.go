package registry

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"criserver/pkg/imagesvc/registry/credential"
	"criserver/pkg/imagesvc/registry/keyring"
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

func newSecrets(c Config, a Auth) *keyring.Secrets {
	s := &keyring.Secrets{}
	s.Add(a.Secrets()...)
	for _, configured := range c.Auth {
		s.Add(configured.Secrets()...)
	}
	return s
}

func discard(resp *http.Response) {
	if resp != nil {
		resp.Body.Close()
	}
}
