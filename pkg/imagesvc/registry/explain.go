package registry

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"criserver/pkg/imagesvc/registry/failure"
	"criserver/pkg/imagesvc/registry/hosts"
)

// Explanation is how a pull would go. It has no secrets in it.
type Explanation struct {
	// Reference is the whole name of the image, Registry its host.
	Reference string `json:"reference"`
	Registry  string `json:"registry"`
	// Source is what the endpoints come from: a configuration key, a directory, or "built in".
	Source string `json:"source,omitempty"`
	// Error is why a pull would fail before anything is asked.
	Error string `json:"error,omitempty"`
	// Endpoints are in the order in which they would be asked now.
	Endpoints []EndpointExplanation `json:"endpoints"`
}

// EndpointExplanation is what a pull would do with one endpoint.
type EndpointExplanation struct {
	// URL is what it would be asked for first, names rewritten.
	URL string `json:"url"`
	// Source is where it was configured: file:line or a configuration key.
	Source string `json:"source"`
	// Own: it is the registry itself.
	Own          bool           `json:"own"`
	Capabilities []string       `json:"capabilities"`
	TLS          TLSExplanation `json:"tls"`
	// Headers are names of header fields.
	Headers []string `json:"headers,omitempty"`
	// Rewritten is the repository's name there, if it is another.
	Rewritten   string `json:"rewritten,omitempty"`
	DialTimeout string `json:"dialTimeout"`
	// Proxy is the host of the proxy that is used.
	Proxy string `json:"proxy,omitempty"`
	// Credential tells who the pull would be: "none", "given with the pull", "the configuration for X", several in their order.
	Credential string `json:"credential"`
	// RestsUntil is set if it gave no answer lately: until then it is asked last.
	RestsUntil *time.Time `json:"restsUntil,omitempty"`
	Resolve    Decision   `json:"resolve"`
	Pull       Decision   `json:"pull"`
	// Probe is what GET of the API's root said, if that was tried.
	Probe *ProbeResult `json:"probe,omitempty"`
}

// TLSExplanation is how an endpoint is known.
type TLSExplanation struct {
	// Verify is how: "system", "system and configured authorities", "none: any certificate is taken", "none: plain HTTP".
	Verify string `json:"verify"`
	// CA are files and directories of authorities, Client the certificates of this node.
	CA     []string `json:"ca,omitempty"`
	Client []string `json:"client,omitempty"`
	// PlainAllowed is why plain HTTP is used.
	PlainAllowed string `json:"plainAllowed,omitempty"`
}

// Decision is whether an endpoint takes part, and why.
type Decision struct {
	In  bool   `json:"in"`
	Why string `json:"why"`
}

// ProbeResult is an answer to GET /v2/, or why there was none. Status 401 is a good one: it asks who is there.
type ProbeResult struct {
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
	Took   string `json:"took"`
}

// Explain tells what a pull would ask, where, in which order, and why, without asking anything.
func (c *Client) Explain(ctx context.Context, ref Reference, a Auth) Explanation {
	repo, err := c.Repository(ref, a)
	if err != nil {
		return unreachable(ref, err)
	}
	return c.explain(ctx, repo, repo.turn(0), a)
}

// Probe is Explain, and asks each endpoint whether it is there: once, without credentials, for probeTimeout at most.
func (c *Client) Probe(ctx context.Context, ref Reference, a Auth) Explanation {
	repo, err := c.Repository(ref, a)
	if err != nil {
		return unreachable(ref, err)
	}
	order := repo.turn(0)
	out := c.explain(ctx, repo, order, a)
	for i, e := range order {
		out.Endpoints[i].Probe = repo.probe(ctx, e)
	}
	return out
}

func unreachable(ref Reference, err error) Explanation {
	return Explanation{Reference: ref.String(), Registry: ref.Domain(), Error: err.Error(), Endpoints: []EndpointExplanation{}}
}

// maxProbeBody bounds what is read of an answer.
const maxProbeBody = 8 << 10

// probeTimeout is how long to wait for one endpoint.
const probeTimeout = 10 * time.Second

func (c *Client) explain(ctx context.Context, repo *Repository, order []*endpoint, a Auth) Explanation {
	ref := repo.ref
	out := Explanation{Reference: ref.String(), Registry: ref.Domain(), Source: repo.configured, Endpoints: []EndpointExplanation{}}
	for _, e := range order {
		out.Endpoints = append(out.Endpoints, c.explainEndpoint(ctx, repo, e, a))
	}
	for _, can := range []hosts.Capability{needs(ref), hosts.Pull} {
		if len(repo.turn(can)) == 0 {
			out.Error = repo.nobody(can).Error()
		}
	}
	return out
}

func (c *Client) explainEndpoint(ctx context.Context, r *Repository, e *endpoint, a Auth) EndpointExplanation {
	out := EndpointExplanation{
		URL: r.url(e, "manifests/"+r.ref.Object()).String(), Source: e.Source, Own: e.own,
		Capabilities: e.Capabilities.Names(), TLS: explainTLS(e.Endpoint), Headers: slices.Sorted(maps.Keys(e.Header)),
		DialTimeout: e.DialTimeout.String(), Credential: c.credentialSource(ctx, e.server, r.ref, a),
	}
	if e.path != r.ref.Path() {
		out.Rewritten = e.path
	}
	if proxy := proxyOf(e); proxy != nil {
		out.Proxy = proxy.Host
	}
	if until := r.health.RestsUntil(e.identity); !until.IsZero() {
		out.RestsUntil = &until
	}
	switch {
	case r.ref.Digest() != "":
		out.Resolve = Decision{false, "the name has a digest: there is nothing to resolve"}
	case !e.Capabilities.Has(hosts.Resolve):
		out.Resolve = Decision{false, "it is configured without resolve"}
	default:
		out.Resolve = Decision{true, whyIn(e, out.RestsUntil)}
	}
	if out.Pull = (Decision{true, whyIn(e, out.RestsUntil)}); !e.Capabilities.Has(hosts.Pull) {
		out.Pull = Decision{false, "it is configured without pull"}
	}
	return out
}

func whyIn(e *endpoint, rests *time.Time) string {
	why := "it is a mirror"
	switch {
	case e.own:
		why = "it is the registry itself"
	case e.Last:
		why = "it is the server in the place of the registry"
	}
	if rests != nil {
		why += ", asked last because it gave no answer lately"
	}
	return why
}

func explainTLS(e *hosts.Endpoint) TLSExplanation {
	out := TLSExplanation{Verify: "system", PlainAllowed: e.Plain}
	if e.Plain != "" {
		out.Verify = "none: plain HTTP"
		return out
	}
	out.CA = e.TLS.CA
	for _, pair := range e.TLS.Client {
		out.Client = append(out.Client, pair.Cert)
	}
	switch {
	case e.TLS.SkipVerify:
		out.Verify = "none: any certificate is taken"
	case len(e.TLS.CA) > 0:
		out.Verify = "system and configured authorities"
	}
	return out
}

// credentialSource tells where the credentials come from that newEndpoint and its keyring would try, in their order.
func (c *Client) credentialSource(ctx context.Context, s *server, ref Reference, a Auth) string {
	var sources []string
	mine := a != (Auth{}) && isFor(a, ref.Domain())
	if s.trusted && mine {
		sources = append(sources, "given with the pull")
	}
	found, err := c.credentials.Lookup(ctx, ref.Name(), s.base.Host)
	for _, f := range found {
		sources = append(sources, f.Source)
	}
	if err != nil {
		sources = append(sources, "error: "+err.Error())
	}
	switch {
	case len(sources) > 0:
		return strings.Join(sources, ", then ")
	case mine:
		return "none: that of the pull is for " + ref.Domain() + ", and this mirror may not see it"
	case a != (Auth{}):
		return "none: that of the pull is for another registry"
	}
	return "none"
}

// proxyOf is the proxy that a request to an endpoint goes through.
func proxyOf(e *endpoint) *url.URL {
	if e.Proxy != nil {
		return e.Proxy
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: e.API})
	if err != nil {
		return nil
	}
	return proxy
}

// probe asks an endpoint for the root of its API.
func (r *Repository) probe(ctx context.Context, e *endpoint) *ProbeResult {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	start := time.Now()
	out := &ProbeResult{}
	if status, err := r.ping(ctx, e); err != nil {
		out.Error = r.redact(failure.Innermost(err))
	} else {
		out.Status = status
	}
	out.Took = time.Since(start).Round(time.Millisecond).String()
	return out
}

// ping makes one request, without repetitions.
func (r *Repository) ping(ctx context.Context, e *endpoint) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.API.String()+"/", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("User-Agent", r.config.UserAgent)
	client := &http.Client{Transport: e.transport, CheckRedirect: checkRedirect}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxProbeBody)) // else the connection cannot be used again
	return resp.StatusCode, err
}
