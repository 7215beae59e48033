package hosts

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// Elsewhere returns how a host is reached to which an endpoint sends requests on: a token server, or where blobs are stored.
// The endpoint's authorities vouch for it too, but it sees no client certificate, and its own certificate is checked, unless the
// settings of that host say otherwise: those of the other endpoints of the same registry, or of a registry of that name.
// The error is of ErrConfig.
func (r *Resolver) Elsewhere(e *Endpoint, others []*Endpoint, to *url.URL) (*Endpoint, error) {
	out := &Endpoint{Source: e.Source, DialTimeout: e.DialTimeout, Proxy: e.Proxy, TLS: TLS{CA: e.TLS.CA}}
	is := func(o *Endpoint) bool { return o.Base.Scheme == "https" && sameHost(o.Base, to) }
	at := slices.IndexFunc(others, is)
	if at < 0 {
		host := strings.TrimSuffix(strings.ToLower(to.Host), ":443")
		if !isHost(host) { // anything may stand in a redirect
			return out, nil
		}
		var err error
		if others, _, err = r.Endpoints(host); err != nil {
			return nil, err
		}
		if at = slices.IndexFunc(others, is); at < 0 {
			return out, nil
		}
	}
	own := others[at]
	out.Source, out.TLS = own.Source, own.TLS
	out.TLS.CA = slices.Concat(own.TLS.CA, e.TLS.CA)
	if own.Proxy != nil {
		out.Proxy = own.Proxy
	}
	return out, nil
}

func isHost(host string) bool {
	_, err := reference.WithName(host + "/x")
	return err == nil
}

// sameHost tells whether URLs are of the same host and port.
func sameHost(a, b *url.URL) bool {
	return strings.EqualFold(a.Hostname(), b.Hostname()) && portOf(a) == portOf(b)
}

func portOf(u *url.URL) string {
	if u.Port() == "" && u.Scheme == "http" {
		return "80"
	}
	return cmp.Or(u.Port(), "443")
}

// toHost sends requests to the host of an endpoint as its settings say, with its header fields, and those to other hosts as
// is said of these.
type toHost struct {
	endpoint  *Endpoint
	next      http.RoundTripper
	elsewhere func(to *url.URL) (http.RoundTripper, error)
}

// RoundTrip implements http.RoundTripper.
func (t *toHost) RoundTrip(req *http.Request) (*http.Response, error) {
	e := t.endpoint
	if !sameHost(req.URL, e.Base) {
		next, err := t.elsewhere(req.URL)
		if err != nil {
			if req.Body != nil {
				req.Body.Close()
			}
			return nil, err
		}
		resp, err := next.RoundTrip(req)
		return resp, t.explain(req.URL, err)
	}
	if len(e.Header) == 0 || req.URL.Scheme != e.Base.Scheme {
		return t.next.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	for name, values := range e.Header {
		switch {
		case name == "Host":
			req.Host = values[0]
		case name == "Authorization" && req.Header.Get(name) != "":
			// What was asked for later, for this pull.
		default:
			req.Header[name] = values
		}
	}
	return t.next.RoundTrip(req)
}

// explain says at which host something went wrong, which is not the one that was asked first, and what an operator can do.
func (t *toHost) explain(at *url.URL, err error) error {
	var unknown *tls.CertificateVerificationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		return fmt.Errorf("it sends on to %s: %w; how that host is known is said in certs.d/%s/hosts.toml", at.Host, err, at.Host)
	}
	return fmt.Errorf("it sends on to %s: %w", at.Host, err)
}
