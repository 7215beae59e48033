// Package registry reads images from registries by the OCI distribution protocol: references, mirrors, credentials,
// transport. Whatever it returns is verified: a reader ends with an error unless the content has its size and digest.
package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// Endpoint is where a registry, or a mirror of one, answers.
type Endpoint struct {
	// URL is "http://host:port" or "https://host:port".
	URL string
	// CA is a file of PEM certificates to trust beside the system's.
	CA string
	// SkipVerify trusts any certificate.
	SkipVerify bool
}

// Config tells how to reach registries.
type Config struct {
	// Mirrors are tried in order before the registry's own host, by that host.
	Mirrors map[string][]Endpoint
	// Auth are the credentials for hosts, of registries or mirrors, that a pull brings none for.
	Auth map[string]Auth
	// NoProgress ends a transfer that got no byte for so long; 0 is 5 minutes.
	NoProgress time.Duration
	// UserAgent names the program to registries.
	UserAgent string
}

// Client reads from registries. Its methods may be called at the same time.
type Client struct {
	config Config
	// transports by endpoint, so that connections are used again.
	transports map[Endpoint]http.RoundTripper
	plain      http.RoundTripper
}

// New checks the configuration and reads the certificates.
func New(c Config) (*Client, error) {
	if c.NoProgress <= 0 {
		c.NoProgress = 5 * time.Minute
	}
	client := &Client{config: c, transports: map[Endpoint]http.RoundTripper{}, plain: newTransport(nil, c.NoProgress)}
	for host, endpoints := range c.Mirrors {
		for _, e := range endpoints {
			u, err := url.Parse(e.URL)
			if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || (u.Path != "" && u.Path != "/") {
				return nil, fmt.Errorf("mirror %q of %s: want http://host or https://host", e.URL, host)
			}
			config, err := tlsConfig(e)
			if err != nil {
				return nil, fmt.Errorf("mirror %s of %s: %w", e.URL, host, err)
			}
			client.transports[e] = newTransport(config, c.NoProgress)
		}
	}
	return client, nil
}

func tlsConfig(e Endpoint) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: e.SkipVerify} //nolint:gosec // asked for by name
	if e.CA == "" {
		return config, nil
	}
	pem, err := os.ReadFile(e.CA)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA: no certificate in %s", e.CA)
	}
	config.RootCAs = pool
	return config, nil
}

// endpoint is one place to ask, in the order of trying.
type endpoint struct {
	Endpoint
	host string // host:port
}

// endpoints are the mirrors of a host, then the host.
func (c *Client) endpoints(host string) []endpoint {
	var list []endpoint
	for _, e := range c.config.Mirrors[host] {
		u, _ := url.Parse(e.URL) // checked by New
		list = append(list, endpoint{Endpoint: e, host: u.Host})
	}
	own := host
	if own == "docker.io" {
		own = "registry-1.docker.io"
	}
	scheme := "https://"
	if isLoopback(host) {
		scheme = "http://" // as all clients do for registries on the machine itself
	}
	return append(list, endpoint{Endpoint: Endpoint{URL: scheme + own}, host: own})
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// repository is a client for a repository at an endpoint. The credential of a pull goes to the registry that the image is
// of, and to a mirror only if it is named as the credential's server; a mirror has credentials of its own. None goes to any
// host that an endpoint redirects to.
func (c *Client) repository(e endpoint, ref Reference, a Auth) (*remote.Repository, error) {
	isMirror := e.Endpoint.URL != "" && c.isMirror(e, ref.Host)
	credential := auth.EmptyCredential
	var err error
	switch {
	case !isMirror:
		credential, err = a.credential(ref.Host)
	case a.ServerAddress != "" && sameHost(a.ServerAddress, e.host):
		credential, err = a.credential(e.host)
	}
	if err != nil {
		return nil, err
	}
	if credential == auth.EmptyCredential {
		own, ok := c.config.Auth[e.host]
		if !ok && !isMirror {
			own = c.config.Auth[ref.Host]
		}
		if credential, err = own.credential(""); err != nil {
			return nil, err
		}
	}
	repo, err := remote.NewRepository(e.host + "/" + ref.Repository)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrInvalid, ref, err)
	}
	u, err := url.Parse(e.URL)
	if err != nil {
		return nil, err
	}
	repo.PlainHTTP = u.Scheme == "http"
	transport := c.transports[e.Endpoint]
	if transport == nil {
		transport = c.plain
	}
	httpClient := &http.Client{Transport: transport, CheckRedirect: checkRedirect}
	authClient := &auth.Client{
		Client: httpClient, Cache: auth.NewCache(),
		Credential: auth.StaticCredential(e.host, credential),
	}
	if isLoopback(e.host) {
		authClient.BlockedRealmPrefixes = []netip.Prefix{} // its token server is on this machine too
	}
	authClient.SetUserAgent(c.config.UserAgent)
	repo.Client = authClient
	return repo, nil
}

func (c *Client) isMirror(e endpoint, host string) bool {
	for _, m := range c.config.Mirrors[host] {
		if m == e.Endpoint {
			return true
		}
	}
	return false
}

// checkRedirect follows a few redirects, never from TLS to plain HTTP. The HTTP client drops credentials where the host
// changes.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return fmt.Errorf("more than 10 redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme == "http" {
		return fmt.Errorf("redirect from https to http (%s) is refused", req.URL.Host)
	}
	return nil
}

// newTransport retries what may pass (429, 5xx, resets) and keeps connections.
func newTransport(config *tls.Config, noProgress time.Duration) http.RoundTripper {
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: min(noProgress, time.Minute),
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
	}
	t := retry.NewTransport(base)
	t.Policy = func() retry.Policy {
		return &retry.GenericPolicy{
			Retryable: retry.DefaultPredicate,
			Backoff:   retry.DefaultBackoff,
			MinWait:   100 * time.Millisecond,
			MaxWait:   3 * time.Second,
			MaxRetry:  3,
		}
	}
	return t
}
