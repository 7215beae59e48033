package registry

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// Auth is a credential, in the forms of the CRI's AuthConfig. It is never logged and in no error.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password".
	Auth string
	// ServerAddress, if not empty, is the registry that the credential is for; no other gets it.
	ServerAddress string
	// IdentityToken is an OAuth2 refresh token; RegistryToken a bearer token.
	IdentityToken, RegistryToken string
}

// String keeps secrets out of formatted output.
func (a Auth) String() string {
	if a == (Auth{}) {
		return "no credential"
	}
	return "a credential"
}

// GoString is String for %#v.
func (a Auth) GoString() string { return a.String() }

// credential converts for the registry client; empty if the credential is for another registry than host.
func (a Auth) credential(host string) (auth.Credential, error) {
	if a.ServerAddress != "" && !sameHost(a.ServerAddress, host) {
		return auth.EmptyCredential, nil
	}
	c := auth.Credential{Username: a.Username, Password: a.Password, RefreshToken: a.IdentityToken, AccessToken: a.RegistryToken}
	if c.Username == "" && a.Auth != "" {
		plain, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return c, fmt.Errorf("decode the credential's auth field: %w: it is not base64", ErrUnauthorized)
		}
		user, password, ok := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		if !ok {
			return c, fmt.Errorf("decode the credential's auth field: %w: it is not user:password", ErrUnauthorized)
		}
		c.Username, c.Password = user, password
	}
	return c, nil
}

// sameHost compares a server address as docker's configuration writes it ("https://index.docker.io/v1/") with a host.
func sameHost(address, host string) bool {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Host
	}
	address, _, _ = strings.Cut(address, "/")
	return canonicalHost(address) == canonicalHost(host)
}

// canonicalHost knows Docker Hub's three names.
func canonicalHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}
