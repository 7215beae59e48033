package hosts

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"criserver/pkg/imagesvc/opfile"
)

const (
	tlsTimeout = 15 * time.Second
	// maxCertFile bounds what is read of a file.
	maxCertFile = 4 << 20
	// forgetAfter is when settings that nobody uses any more are forgotten.
	forgetAfter = 10 * time.Minute
)

// Pool keeps connections: one http.Transport for all endpoints of the same settings, for as long as the settings and
// what is in their files stay the same.
type Pool struct {
	answer time.Duration

	mu         sync.Mutex
	bySettings map[string]*pooled
}

type pooled struct {
	checked, used time.Time
	stamp         string
	content       [sha256.Size]byte
	transport     *http.Transport
}

// NewPool makes a pool whose connections wait for answers for some time at most.
func NewPool(answer time.Duration) *Pool {
	return &Pool{answer: answer, bySettings: map[string]*pooled{}}
}

// Transport returns what reaches an endpoint: it sends the endpoint's header fields and client certificate to the endpoint's
// host, and to no other; elsewhere tells how those are reached. The error, of ErrConfig, names the file that is not a
// certificate, or no key.
func (p *Pool) Transport(e *Endpoint, elsewhere func(to *url.URL) (*Endpoint, error)) (http.RoundTripper, error) {
	get := func(e *Endpoint) (http.RoundTripper, error) {
		t, err := p.transport(e)
		if err != nil {
			return nil, &Problem{Key: e.Source, Reason: err.Error(), cause: err}
		}
		return t, nil
	}
	t, err := get(e)
	if err != nil {
		return nil, err
	}
	return &toHost{endpoint: e, next: t, elsewhere: func(to *url.URL) (http.RoundTripper, error) {
		other, err := elsewhere(to)
		if err != nil {
			return nil, err
		}
		return get(other)
	}}, nil
}

func (p *Pool) transport(e *Endpoint) (*http.Transport, error) {
	settings := fmt.Sprintf("%q %q %t %v %v", e.TLS.CA, e.TLS.Client, e.TLS.SkipVerify, e.DialTimeout, e.Proxy)
	now := time.Now()
	p.mu.Lock()
	old := p.bySettings[settings]
	if old != nil {
		old.used = now
	}
	p.mu.Unlock()
	if old != nil && now.Sub(old.checked) < checkEvery {
		return old.transport, nil
	}
	stamp := e.TLS.stamp()
	if old != nil && old.stamp == stamp {
		p.put(settings, &pooled{now, now, stamp, old.content, old.transport})
		return old.transport, nil
	}
	config, content, err := e.TLS.load()
	if err != nil {
		return nil, err
	}
	fresh := &pooled{checked: now, used: now, stamp: stamp, content: content}
	if old != nil && old.content == content {
		fresh.transport = old.transport
	} else {
		fresh.transport = p.dialer(e, config)
	}
	return p.put(settings, fresh), nil
}

// put keeps a transport, unless somebody else has put the same. What it replaces, and what nobody uses, loses its idle
// connections.
func (p *Pool) put(settings string, fresh *pooled) *http.Transport {
	var stale []*http.Transport
	p.mu.Lock()
	old := p.bySettings[settings]
	if old != nil && old.content == fresh.content {
		fresh.transport = old.transport
	} else if old != nil {
		stale = append(stale, old.transport)
	}
	p.bySettings[settings] = fresh
	for name, other := range p.bySettings {
		if fresh.used.Sub(other.used) > forgetAfter {
			stale = append(stale, other.transport)
			delete(p.bySettings, name)
		}
	}
	p.mu.Unlock()
	for _, t := range stale {
		t.CloseIdleConnections()
	}
	return fresh.transport
}

func (p *Pool) dialer(e *Endpoint, config *tls.Config) *http.Transport {
	proxy := http.ProxyFromEnvironment
	if e.Proxy != nil {
		proxy = http.ProxyURL(e.Proxy)
	}
	return &http.Transport{
		Proxy:                 proxy,
		DialContext:           (&net.Dialer{Timeout: min(e.DialTimeout, p.answer)}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   min(e.DialTimeout, tlsTimeout, p.answer),
		ResponseHeaderTimeout: p.answer,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		// Decompressed in passing, a blob would not have its digest any more.
		DisableCompression: true,
	}
}

// files lists what is read, with the directories in which it was found.
func (t TLS) files() (cas, dirs []string, err error) {
	for _, ca := range t.CA {
		info, err := opfile.Stat(ca)
		if err != nil {
			return nil, nil, fmt.Errorf("read certificates: %w", err)
		}
		if !info.IsDir() {
			cas = append(cas, ca)
			continue
		}
		dirs = append(dirs, ca)
		entries, err := opfile.ReadDir(ca)
		if err != nil {
			return nil, nil, fmt.Errorf("read certificates: %w", err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".crt") {
				cas = append(cas, filepath.Join(ca, e.Name()))
			}
		}
	}
	return cas, dirs, nil
}

func (t TLS) stamp() string {
	cas, dirs, err := t.files()
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, file := range append(cas, dirs...) {
		b.WriteString(stampOf(file))
	}
	for _, pair := range t.Client {
		b.WriteString(stampOf(pair.Cert))
		if pair.Key != "" {
			b.WriteString(stampOf(pair.Key))
		}
	}
	return b.String()
}

// load reads the files. Equal content has an equal sum.
func (t TLS) load() (config *tls.Config, sum [sha256.Size]byte, err error) {
	config = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.SkipVerify} //nolint:gosec // as the operator says
	hash := sha256.New()
	cas, _, err := t.files()
	if err != nil {
		return nil, sum, err
	}
	if len(t.CA) > 0 {
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool() // a machine without certificates
		}
	}
	for _, file := range cas {
		pem, err := opfile.Read(file, maxCertFile)
		if err != nil {
			return nil, sum, fmt.Errorf("read certificates: %w", err)
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, sum, fmt.Errorf("%s has no certificate", file)
		}
		fmt.Fprintf(hash, "ca %d ", len(pem))
		hash.Write(pem)
	}
	for _, pair := range t.Client {
		cert, key, err := pair.read()
		if err != nil {
			return nil, sum, fmt.Errorf("read client certificate: %w", err)
		}
		loaded, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, sum, fmt.Errorf("client certificate %s with key %s: %w", pair.Cert, pair.keyFile(), err)
		}
		config.Certificates = append(config.Certificates, loaded)
		fmt.Fprintf(hash, "client %d %d ", len(cert), len(key))
		hash.Write(cert)
		hash.Write(key)
	}
	return config, [sha256.Size]byte(hash.Sum(nil)), nil
}

func (k KeyPair) keyFile() string {
	if k.Key == "" {
		return k.Cert
	}
	return k.Key
}

func (k KeyPair) read() (cert, key []byte, err error) {
	if cert, err = opfile.Read(k.Cert, maxCertFile); err != nil {
		return nil, nil, err
	}
	key, err = opfile.Read(k.keyFile(), maxCertFile)
	return cert, key, err
}

// Identity tells endpoints apart that may work where others do not. It changes with the configuration, so that what was
// mended is tried at once.
func (p *Pool) Identity(e *Endpoint) string {
	t, err := p.transport(e)
	if err != nil {
		return e.API.String()
	}
	return fmt.Sprintf("%s %p", e.API, t)
}

// Unreached tells whether an error says that a request got no answer from a host, rather than a wrong one, or from a host
// that it was redirected to.
func Unreached(err error, host string) bool {
	var failed *url.Error
	if !errors.As(err, &failed) || errors.Is(err, http.ErrSchemeMismatch) {
		return false
	}
	u, err := url.Parse(failed.URL)
	return err == nil && strings.EqualFold(u.Host, host)
}
