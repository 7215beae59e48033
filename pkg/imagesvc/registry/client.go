// Package registry fetches manifests and blobs by the distribution protocol (OCI distribution-spec), from mirrors first,
// with the credentials of a pull. What it returns is verified against size and digest.
package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"oras.land/oras-go/v2/registry/remote/retry"

	"criserver/pkg/imagesvc/registry/credential"
)

const (
	defaultNoProgress = 5 * time.Minute
	defaultBackoff    = 250 * time.Millisecond
	maxBackoff        = 10 * time.Second
	maxRetries        = 4
	dialTimeout       = 30 * time.Second
	tlsTimeout        = 15 * time.Second
)

// Client reaches registries. It keeps connections, not credentials or tokens.
type Client struct {
	config  Config
	mirrors map[string][]*server // by API host of the registry
	// The registries' own hosts.
	secure, insecure *http.Client
	credentials      *credential.Store
}

// server is where an endpoint is and how to talk to it.
type server struct {
	base *url.URL
	http *http.Client
	// own says that this is the registry itself.
	own bool
	// trusted with the credentials of pulls
	trusted bool
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
	client := &Client{config: c, mirrors: map[string][]*server{}}
	client.secure = client.newHTTP(&tls.Config{MinVersion: tls.VersionTLS12})
	client.insecure = client.newHTTP(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	for host, endpoints := range c.Mirrors {
		for i, e := range endpoints {
			s, err := client.newServer(host, e)
			if err != nil {
				return nil, fmt.Errorf("mirror %d of %s: %w", i+1, host, err)
			}
			client.mirrors[apiHost(host)] = append(client.mirrors[apiHost(host)], s)
		}
	}
	for host, hc := range c.Hosts {
		if hc.NoFallback && len(client.mirrors[apiHost(host)]) == 0 {
			return nil, fmt.Errorf("registry %s: %w: no mirror, and no fallback to the host itself", host, ErrInvalid)
		}
	}
	if err := c.ShortNames.check(); err != nil {
		return nil, err
	}
	var err error
	if client.credentials, err = newStore(c); err != nil {
		return nil, err
	}
	return client, nil
}

func (c *Client) newServer(host string, e Endpoint) (*server, error) {
	u, err := url.Parse(e.URL)
	if err != nil {
		// What the parser says quotes the URL, which may have a password in it.
		return nil, fmt.Errorf("URL: %w", ErrInvalid)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("URL: %w: want http://host or https://host, with a path at most", ErrInvalid)
	}
	s := &server{base: u, http: c.secure}
	s.own = u.Host == apiHost(host) || u.Host == host
	s.trusted = s.own || e.TakesCredentials
	switch {
	case e.SkipVerify:
		s.http = c.insecure
	case e.CA != "":
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a machine without certificates
		}
		pem, err := os.ReadFile(e.CA)
		if err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: %s has no certificate", ErrInvalid, e.CA)
		}
		s.http = c.newHTTP(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool})
	}
	return s, nil
}

func (c *Client) newHTTP(t *tls.Config) *http.Client {
	return &http.Client{CheckRedirect: checkRedirect, Transport: &retry.Transport{
		Base: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: min(dialTimeout, c.config.NoProgress)}).DialContext,
			TLSClientConfig:       t,
			TLSHandshakeTimeout:   min(tlsTimeout, c.config.NoProgress),
			ResponseHeaderTimeout: c.config.NoProgress,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       30 * time.Second,
			// Decompressed in passing, a blob would not have its digest any more.
			DisableCompression: true,
		},
		Policy: func() retry.Policy {
			return &retry.GenericPolicy{
				Retryable: worthRetrying,
				Backoff:   retry.ExponentialBackoff(c.config.Backoff, 2, 0.1),
				MinWait:   c.config.Backoff,
				MaxWait:   maxBackoff,
				MaxRetry:  maxRetries,
			}
		},
	}}
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

// worthRetrying leaves out what another endpoint should answer rather than the same one a second later: refused
// connections, wrong certificates, timeouts.
func worthRetrying(resp *http.Response, err error) (bool, error) {
	if err != nil {
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
			errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF), nil
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true, nil
	}
	return false, nil
}

// Repository returns what fetches one image, for one pull: it remembers tokens, and which endpoints do not work.
// ErrInvalid: a malformed credential.
func (c *Client) Repository(ref Reference, a Auth) (*Repository, error) {
	return c.repository(ref, a, c.servers(ref.Domain()))
}

func (c *Client) repository(ref Reference, a Auth, servers []*server) (*Repository, error) {
	r := &Repository{ref: ref, config: &c.config, secrets: newSecrets(c.config, a)}
	for _, s := range servers {
		ep, err := c.newEndpoint(s, ref, a, r.secrets)
		if err != nil {
			return nil, err
		}
		r.endpoints = append(r.endpoints, ep)
	}
	return r, nil
}

// newEndpoint decides who sees the credential of a pull.
func (c *Client) newEndpoint(s *server, ref Reference, a Auth, known *secrets) (*endpoint, error) {
	given, err := a.Credential("the pull")
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w: %w", ref.Domain(), ErrInvalid, err)
	}
	known.add(given.Secrets()...)
	if !s.trusted || !isFor(a, ref.Domain()) {
		given = credential.Credential{}
	}
	return &endpoint{server: s, keys: c.newKeyring(s, ref.Name(), given, known)}, nil
}

// servers lists where to look for images of a registry, in order.
func (c *Client) servers(domain string) []*server {
	host := apiHost(domain)
	servers := c.mirrors[host]
	hc := c.hostConfig(host)
	if hc.NoFallback {
		return servers
	}
	for _, s := range servers {
		if s.own {
			return servers
		}
	}
	servers = servers[:len(servers):len(servers)]
	own := func(scheme string, h *http.Client) *server {
		return &server{base: &url.URL{Scheme: scheme, Host: host}, http: h, own: true, trusted: true}
	}
	switch {
	case hc.Insecure:
		return append(servers, own("https", c.insecure), own("http", c.secure))
	case isLocal(host):
		return append(servers, own("https", c.secure), own("http", c.secure))
	}
	return append(servers, own("https", c.secure))
}

func (c *Client) hostConfig(host string) HostConfig {
	for name, hc := range c.config.Hosts {
		if apiHost(name) == host {
			return hc
		}
	}
	return HostConfig{}
}

// isLocal: what goes to the machine itself cannot be listened to on the way.
func isLocal(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return name == "localhost" || err == nil && addr.IsLoopback()
}
