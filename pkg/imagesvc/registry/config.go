package registry

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"criserver/pkg/imagesvc/registry/hosts"
)

// Config says how registries are reached. The zero value reaches each by HTTPS, those on localhost by HTTP too.
type Config struct {
	// Mirrors are tried in order before a registry's own host. The key is that host, as in the names of images:
	// "docker.io", "localhost:5000"; "_default" is for registries that have no settings of their own, here or in a
	// ConfigPath. One that is the registry itself replaces the last try.
	Mirrors map[string][]Endpoint
	// Hosts are other settings of registries, by the same key.
	Hosts map[string]HostConfig
	// ConfigPath are directories of the layout certs.d/<host>/hosts.toml, for registries that are not keys of Mirrors or
	// Hosts. They are read again when they change.
	ConfigPath []string
	// Auth are credentials by host of a registry or mirror, for when a pull comes without any for that host.
	Auth map[string]Auth
	// NoProgress is how long to wait for the next byte of a registry. 0 is 5 minutes.
	NoProgress time.Duration
	// Backoff is the wait before the first repetition of a request; it doubles each time. 0 is 250 ms.
	Backoff time.Duration
	// UserAgent is sent with each request. "" is criserver.
	UserAgent string
}

// HostConfig is how to reach a registry's own host.
type HostConfig struct {
	// NoFallback leaves it out: only mirrors are asked.
	NoFallback bool
	// Insecure accepts any certificate, and plain HTTP if the host has no TLS.
	Insecure bool
}

// Endpoint is a server to pull from.
type Endpoint = hosts.Entry

// hosts is how registries are reached, without what it takes to be let in.
func (c *Config) hosts() hosts.Config {
	out := hosts.Config{Registries: map[string]hosts.Registry{}, Dirs: c.ConfigPath}
	for host, mirrors := range c.Mirrors {
		r := out.Registries[host]
		r.Mirrors, r.Source = mirrors, fmt.Sprintf("registry.mirrors.%q", host)
		out.Registries[host] = r
	}
	for host, hc := range c.Hosts {
		r := out.Registries[host]
		r.NoFallback, r.Insecure, r.Source = hc.NoFallback, hc.Insecure, fmt.Sprintf("registry.mirrors.%q", host)
		out.Registries[host] = r
	}
	return out
}

// Auth is a credential as it comes with a pull (CRI AuthConfig). It is secret: no error tells any of it.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password", used if Username is empty.
	Auth string
	// ServerAddress is the host or URL of the registry that the credential is for; "" is the image's.
	ServerAddress string
	// IdentityToken is an OAuth2 refresh token.
	IdentityToken string
	// RegistryToken is a bearer token to be sent to the registry as it is.
	RegistryToken string
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

// isFor tells whether the credential may be sent to a registry.
func (a Auth) isFor(domain string) bool {
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

func (a Auth) credential() (auth.Credential, error) {
	c := auth.Credential{
		Username: a.Username, Password: a.Password, RefreshToken: a.IdentityToken, AccessToken: a.RegistryToken,
	}
	if c.Username != "" || a.Auth == "" {
		return c, nil
	}
	// The decoder's error would tell of the secret.
	decoded, err := base64.StdEncoding.DecodeString(a.Auth)
	user, password, ok := strings.Cut(string(decoded), ":")
	if err != nil || !ok {
		return c, fmt.Errorf("%w: field auth is not base64 of \"username:password\"", ErrInvalid)
	}
	// Docker's configuration files are known to pad it.
	c.Username, c.Password = user, strings.Trim(password, "\x00")
	return c, nil
}

// secrets are the parts that must not appear in any message.
func (a Auth) secrets() []string {
	all := []string{a.Password, a.Auth, a.IdentityToken, a.RegistryToken}
	if c, err := a.credential(); err == nil {
		all = append(all, c.Password)
	}
	return all
}

// apiHost is where a registry's API is. Docker's is not where its name says.
func apiHost(domain string) string { return hosts.APIHost(domain) }
