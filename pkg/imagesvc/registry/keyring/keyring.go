// Package keyring signs in at a registry: it tries the credentials there are, one after the other, with the tokens got for them,
// and keeps each where it belongs.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"criserver/pkg/imagesvc/registry/credential"
	"criserver/pkg/imagesvc/registry/hosts"
)

var (
	// ErrNoUse: the server asks for a kind of credential that there is not.
	ErrNoUse = errors.New("no credential of the kind that the server asks for")
	// ErrPlain: see guard.
	ErrPlain = errors.New("credentials are not sent by plain HTTP")
)

// Keyring is the credentials for one endpoint, for one pull, in the order in which they are tried: the one that came
// with the pull, those that the node has for the host, none at all. The node's are looked for when the server asks.
type Keyring struct {
	find   func(context.Context) ([]credential.Credential, error)
	client func(get auth.CredentialFunc, grant bool) *auth.Client
	host   string

	mu      sync.Mutex
	all     []credential.Credential // without the last, none
	found   bool                    // all of them are there
	problem error                   // of find
	clients map[int]*auth.Client
	current int // what worked last
}

// Options are what a Keyring is for.
type Options struct {
	// Base is the endpoint. Its host alone gets the credentials.
	Base *url.URL
	// HTTP sends requests. If its transport is a *retry.Transport, requests marked by Once are not repeated.
	HTTP      *http.Client
	UserAgent string
	// Given is the credential that came with the pull; Find looks for those that the node has.
	Given credential.Credential
	Find  func(context.Context) ([]credential.Credential, error)
	// MayBePlain tells whether a host may see credentials by plain HTTP.
	MayBePlain func(host string) bool
	// Known gets what no message may tell.
	Known *Secrets
}

// New returns a keyring for one pull.
func New(o Options) *Keyring {
	k := &Keyring{host: o.Base.Host, clients: map[int]*auth.Client{}}
	if !o.Given.IsZero() {
		k.all = []credential.Credential{o.Given}
	}
	k.find = func(ctx context.Context) ([]credential.Credential, error) {
		found, err := o.Find(ctx)
		for _, f := range found {
			o.Known.Add(f.Secrets()...)
		}
		return found, err
	}
	g := &guard{base: o.HTTP.Transport, once: o.HTTP.Transport, allowed: func(host string) bool {
		return host == o.Base.Host && o.Base.Scheme == "http" || hosts.IsLoopback(host) || o.MayBePlain(host)
	}}
	if t, ok := o.HTTP.Transport.(*retry.Transport); ok {
		g.once = t.Base
	}
	guarded := &http.Client{CheckRedirect: o.HTTP.CheckRedirect, Transport: g}
	k.client = func(get auth.CredentialFunc, grant bool) *auth.Client {
		client := &auth.Client{
			Client:             guarded,
			Header:             http.Header{"User-Agent": {o.UserAgent}},
			Cache:              &tokens{auth.NewCache(), o.Known},
			ClientID:           "criserver",
			Credential:         get,
			ForceAttemptOAuth2: grant,
		}
		if hosts.IsLoopback(o.Base.Host) {
			client.BlockedRealmPrefixes = []netip.Prefix{} // a registry on this machine may have its token server here too
		}
		return client
	}
	return k
}

// Do sends a request as who worked last. If the server refuses that, it goes through the others; if it refuses all, the
// answer is that to the first.
func (k *Keyring) Do(req *http.Request) (*http.Response, error) {
	k.mu.Lock()
	first := k.current
	k.mu.Unlock()
	resp, err := k.as(first, req)
	if !refused(resp, err) {
		return resp, err
	}
	for i := range k.count() {
		if i == first {
			continue
		}
		again, ok := rewound(req)
		if !ok {
			break
		}
		other, otherErr := k.as(i, again)
		if refused(other, otherErr) || otherErr != nil && req.Context().Err() == nil {
			discard(other)
			continue
		}
		discard(resp)
		k.mu.Lock()
		k.current = i
		k.mu.Unlock()
		return other, otherErr
	}
	return resp, err
}

// as sends a request with one of the credentials.
func (k *Keyring) as(i int, req *http.Request) (*http.Response, error) {
	resp, err := k.clientOf(i, false).Do(req)
	var answer *errcode.ErrorResponse
	if !errors.As(err, &answer) || answer.StatusCode != http.StatusNotFound && answer.StatusCode != http.StatusMethodNotAllowed {
		return resp, err
	}
	// The token server has only OAuth2.
	k.mu.Lock()
	known := i < len(k.all) && k.all[i].HasPassword()
	k.mu.Unlock()
	again, ok := rewound(req)
	if !known || !ok {
		return resp, err
	}
	return k.clientOf(i, true).Do(again)
}

// clientOf keeps a client, with its tokens, for each credential.
func (k *Keyring) clientOf(i int, grant bool) *auth.Client {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.clients[i]
	if c == nil || grant && !c.ForceAttemptOAuth2 {
		c = k.client(func(ctx context.Context, host string) (auth.Credential, error) { return k.get(ctx, host, i) }, grant)
		k.clients[i] = c
	}
	return c
}

// get is called when the server, or one that it redirected to, asks for a credential.
func (k *Keyring) get(ctx context.Context, host string, i int) (auth.Credential, error) {
	if host != k.host {
		return auth.EmptyCredential, nil
	}
	k.mu.Lock()
	found := k.found
	k.mu.Unlock()
	if !found {
		more, err := k.find(ctx)
		if ctx.Err() != nil {
			return auth.EmptyCredential, context.Cause(ctx)
		}
		k.add(more, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if i < len(k.all) {
		return k.all[i].Value(), nil
	}
	return auth.EmptyCredential, nil
}

func (k *Keyring) add(more []credential.Credential, problem error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.found {
		return
	}
	for _, c := range more {
		if !slices.ContainsFunc(k.all, func(old credential.Credential) bool { return old.Value() == c.Value() }) {
			k.all = append(k.all, c)
		}
	}
	k.found, k.problem = true, problem
}

// count is how many ways there are, the one without a credential included; before the server asked for any, just one.
func (k *Keyring) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.found {
		return 1
	}
	return len(k.all) + 1
}

// Explain says of a refusal, whose text is given, who was refused.
func (k *Keyring) Explain(err error, text string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var sources []string
	for _, c := range k.all {
		sources = append(sources, c.Source)
	}
	switch {
	case len(sources) > 0:
		text += "; tried the credentials of " + strings.Join(sources, ", ")
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		text = "no credentials were given for this host"
	default:
		text = "no credentials were given for this host, and it refuses: " + text
	}
	if k.problem != nil {
		text += "; " + strings.ReplaceAll(k.problem.Error(), "\n", "; ")
	}
	return text
}

// refused tells whether other credentials may help.
func refused(resp *http.Response, err error) bool {
	var answer *errcode.ErrorResponse
	switch {
	case err == nil:
		return resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden
	case errors.Is(err, ErrNoUse), errors.Is(err, ErrPlain):
		return true
	case errors.As(err, &answer): // only token servers' answers come as errors
		return answer.StatusCode >= 400 && answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests
	}
	return false
}

// rewound is the request once more, if its body can be sent again.
func rewound(req *http.Request) (*http.Request, bool) {
	again := req.Clone(req.Context())
	if req.Body == nil || req.Body == http.NoBody {
		return again, true
	}
	if req.GetBody == nil {
		return nil, false
	}
	body, err := req.GetBody()
	again.Body = body
	return again, err == nil
}

func discard(resp *http.Response) {
	if resp != nil {
		resp.Body.Close()
	}
}

// tokens is a cache that has its content kept out of messages.
type tokens struct {
	auth.Cache
	known *Secrets
}

// Set implements auth.Cache.
func (t *tokens) Set(ctx context.Context, host string, scheme auth.Scheme, key string, fetch func(context.Context) (string, error)) (string, error) {
	token, err := t.Cache.Set(ctx, host, scheme, key, fetch)
	if err != nil && scheme == auth.SchemeBasic && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", ErrNoUse, err)
	}
	t.known.Add(token)
	return token, err
}

// guard keeps credentials from plain HTTP, but where that is allowed: for the token server that a registry names as well
// as for the registry.
type guard struct {
	base, once http.RoundTripper // once does not repeat requests
	allowed    func(host string) bool
}

type onceKey struct{}

// Once marks requests that must not be repeated by the transport.
func Once(ctx context.Context) context.Context { return context.WithValue(ctx, onceKey{}, true) }

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	secret := req.Header.Get("Authorization") != "" ||
		req.Method == http.MethodPost && req.Header.Get("Content-Type") == "application/x-www-form-urlencoded" // OAuth2
	if req.URL.Scheme != "https" && secret && !g.allowed(req.URL.Host) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("%w to %s", ErrPlain, req.URL.Host)
	}
	if req.Context().Value(onceKey{}) != nil {
		return g.once.RoundTrip(req)
	}
	return g.base.RoundTrip(req)
}
