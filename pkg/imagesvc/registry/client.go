// Package registry fetches manifests and blobs by the distribution protocol (OCI distribution-spec), from mirrors first,
// with the credentials of a pull. What it returns is verified against size and digest.
package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"oras.land/oras-go/v2/registry/remote/retry"

	"criserver/pkg/imagesvc/registry/credential"
	"criserver/pkg/imagesvc/registry/hosts"
	"criserver/pkg/imagesvc/registry/keyring"
)

const (
	defaultNoProgress = 5 * time.Minute
	defaultBackoff    = 250 * time.Millisecond
)

// Client reaches registries. It keeps connections, and which endpoints do not answer, but no credentials or tokens.
type Client struct {
	config      Config
	resolver    *hosts.Resolver
	pool        *hosts.Pool
	health      *hosts.Health
	credentials *credential.Store
}

// server is where an endpoint is and how to talk to it.
type server struct {
	*hosts.Endpoint
	base *url.URL
	http *http.Client
	// transport is what http is made of, without repetitions.
	transport http.RoundTripper
	// own says that this is the registry itself.
	own bool
	// trusted with the credentials of pulls
	trusted bool
	// identity is its name in the memory of what does not answer.
	identity string
}

// New checks the configuration and reads the certificates that it names.
func New(c Config) (*Client, error) {
	if c.NoProgress == 0 {
		c.NoProgress = defaultNoProgress
	}
	if c.Backoff == 0 {
		c.Backoff = defaultBackoff
	}
	if c.UserAgent == "" {
		c.UserAgent = "criserver"
	}
	resolver, err := hosts.NewResolver(c.hosts())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	client := &Client{config: c, resolver: resolver, pool: hosts.NewPool(c.NoProgress), health: &hosts.Health{}}
	for host := range c.Mirrors {
		if _, _, err := client.servers(host); err != nil {
			return nil, fmt.Errorf("mirrors of %s: %w", host, err)
		}
	}
	if err := c.ShortNames.Check(); err != nil {
		return nil, err
	}
	if client.credentials, err = newStore(c); err != nil {
		return nil, err
	}
	return client, nil
}

// newServer makes a server of one of the endpoints of a registry.
func (c *Client) newServer(e *hosts.Endpoint, all []*hosts.Endpoint) (*server, error) {
	transport, err := c.pool.Transport(e, func(to *url.URL) (*hosts.Endpoint, error) { return c.resolver.Elsewhere(e, all, to) })
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return &server{
		Endpoint: e, base: e.Base, own: e.Own, trusted: e.Own || e.TakesCredentials, identity: c.pool.Identity(e), transport: transport,
		http: &http.Client{CheckRedirect: checkRedirect, Transport: &retry.Transport{
			Base:   transport,
			Policy: func() retry.Policy { return &hosts.Retries{Backoff: c.config.Backoff} },
		}},
	}, nil
}

// maxRedirects is what net/http itself allows.
const maxRedirects = 10

// checkRedirect does not go from TLS to plain HTTP: a manifest asked for by tag is protected by nothing else. The
// auth client drops credentials where the host changes.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %s at %s is refused", req.URL.Scheme, req.URL.Host)
	}
	return nil
}

// Repository returns what fetches one image, for one pull: it remembers tokens, and which endpoints do not work.
// ErrInvalid: a malformed credential, or what an operator wrote on this registry.
func (c *Client) Repository(ref Reference, a Auth) (*Repository, error) {
	servers, source, err := c.servers(ref.Domain())
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w", ref.Domain(), err)
	}
	return c.repository(ref, a, servers, source)
}

func (c *Client) repository(ref Reference, a Auth, servers []*server, source string) (*Repository, error) {
	r := &Repository{ref: ref, config: &c.config, configured: source, health: c.health, secrets: newSecrets(c.config, a)}
	for _, s := range servers {
		ep, err := c.newEndpoint(s, ref, a, r.secrets)
		if err != nil {
			return nil, err
		}
		if ep.path, err = s.Repository(ref.Path()); err != nil {
			return nil, fmt.Errorf("reach %s: %w: %w", ref.Domain(), ErrInvalid, err)
		}
		r.endpoints = append(r.endpoints, ep)
		r.secrets.Add(s.secrets()...)
	}
	return r, nil
}

// newEndpoint decides who sees the credential of a pull.
func (c *Client) newEndpoint(s *server, ref Reference, a Auth, known *keyring.Secrets) (*endpoint, error) {
	given, err := a.Credential("the pull")
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w: %w", ref.Domain(), ErrInvalid, err)
	}
	known.Add(given.Secrets()...)
	if !s.trusted || !isFor(a, ref.Domain()) {
		given = credential.Credential{}
	}
	return &endpoint{server: s, keys: keyring.New(keyring.Options{
		Base: s.base, HTTP: s.http, UserAgent: c.config.UserAgent, Given: given, MayBePlain: c.insecure, Known: known,
		Find: func(ctx context.Context) ([]credential.Credential, error) {
			return c.credentials.Lookup(ctx, ref.Name(), s.base.Host)
		},
	})}, nil
}

// servers lists where to look for images of a registry, in order, and what the list was made of. ErrInvalid.
func (c *Client) servers(domain string) ([]*server, string, error) {
	endpoints, source, err := c.resolver.Endpoints(domain)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var servers []*server
	for _, e := range endpoints {
		s, err := c.newServer(e, endpoints)
		if err != nil {
			return nil, "", err
		}
		servers = append(servers, s)
	}
	return servers, source, nil
}

// insecure tells whether a host was configured to be reached without TLS.
func (c *Client) insecure(host string) bool {
	for name, hc := range c.config.Hosts {
		if apiHost(name) == host {
			return hc.Insecure
		}
	}
	return false
}

// shortest is the least length of a header field's value that is taken for a secret: text has too much of what is shorter.
const shortest = 8

// secrets are parts that must not appear in any message, though a server may say them.
func (s *server) secrets() []string {
	var all []string
	for _, values := range s.Header {
		for _, v := range values {
			if len(v) >= shortest {
				all = append(all, v)
			}
		}
	}
	return all
}
