// Package hosts tells how a registry is reached: at which endpoints, in which order, over which connections, and which
// of them gave no answer lately. It asks no registry anything.
//
// The endpoints of a registry come from the first of these that has any:
//
//	Config.Registries by the registry's host
//	certs.d/<host>/ in one of Config.Dirs: hosts.toml as containerd reads it, or else *.crt, *.cert and *.key as docker does
//	Config.Registries["_default"]
//	certs.d/_default/
//
// Mirrors come first, in the order in which they are written. The registry itself comes last, unless it is one of them
// or is left out (NoFallback, or another server in hosts.toml).
package hosts

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"time"
)

// Default is the name under which the settings of all registries without their own stand.
const Default = "_default"

// Dial timeouts of endpoints that have none.
const (
	// MirrorDialTimeout is short, since another endpoint comes next.
	MirrorDialTimeout = 5 * time.Second
	// OwnDialTimeout is for the last endpoint: the registry itself, or the server in its place.
	OwnDialTimeout = 30 * time.Second
)

// ErrConfig is of all errors in what an operator wrote; test with errors.Is.
var ErrConfig = errors.New("registry configuration")

// Problem is one thing that is wrong with what an operator wrote.
type Problem struct {
	// File and Line are where; "" and 0 for what was not in a file of this package.
	File string
	Line int
	// Key is the TOML key, with the name of the host: host."https://mirror.example".ca.
	Key    string
	Reason string

	cause error // nil if it is what the file says
}

// Unwrap returns why a file could not be read.
func (p *Problem) Unwrap() error { return p.cause }

func (p *Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(at(p.File, p.Line) + ": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	return b.String() + p.Reason
}

// Is has all Problems be ErrConfig.
func (p *Problem) Is(target error) bool { return target == ErrConfig }

func at(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// Capability is what an endpoint may be asked for.
type Capability uint8

// Capabilities are or'ed.
const (
	// Resolve is to say which manifest a tag is of. It takes trust: nothing verifies the answer.
	Resolve Capability = 1 << iota
	// Pull is to serve manifests by digest, and blobs.
	Pull
	// Push is to take uploads.
	Push

	// All is what an endpoint may if nobody says otherwise.
	All = Resolve | Pull | Push
)

var capabilityNames = []string{"resolve", "pull", "push"}

// Names lists the capabilities as they are written in configuration.
func (c Capability) Names() []string {
	var names []string
	for i, name := range capabilityNames {
		if c&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

func (c Capability) String() string { return strings.Join(c.Names(), ", ") }

// Has tells whether all of want are in c.
func (c Capability) Has(want Capability) bool { return c&want == want }

// Endpoint is where and how to ask for the images of one registry. It is not changed after it was made.
type Endpoint struct {
	// Base is the URL as configured. API is the root of the distribution API, which ends in /v2 unless the configured
	// path overrides it.
	Base, API *url.URL
	// Own says that this is the registry itself: its answer is the last word, and the credentials of pulls are for it.
	Own bool
	// Last says that it stands in the place of the registry itself: no mirror.
	Last         bool
	Capabilities Capability
	TLS          TLS
	// Header is sent to this host only, not where it redirects to, nor to a token server elsewhere.
	Header  http.Header
	Rewrite Rewrites
	// DialTimeout bounds connecting and, after that, the TLS handshake. Not 0.
	DialTimeout time.Duration
	// Proxy is used instead of what the environment says.
	Proxy *url.URL
	// TakesCredentials: see Entry.
	TakesCredentials bool
	// Source is where it was configured: file:line, a configuration key, or "built in".
	Source string
	// Plain is why plain HTTP is used; "" with TLS.
	Plain string
}

// TLS is how an endpoint is known, and how this node is known to it. Its files are read when they are needed, and
// again when they change.
type TLS struct {
	// CA are PEM files, or directories of *.crt, of certificates that are trusted beside the system's.
	CA []string
	// Client are certificates of this node with their keys.
	Client []KeyPair
	// SkipVerify trusts any certificate.
	SkipVerify bool
}

// KeyPair are PEM files; without Key the key is in Cert too.
type KeyPair struct{ Cert, Key string }

func (t TLS) given() bool { return len(t.CA) > 0 || len(t.Client) > 0 || t.SkipVerify }

// Repository is how the endpoint names a repository of the registry. ErrConfig if it was rewritten to no name.
func (e *Endpoint) Repository(name string) (string, error) {
	rewritten := e.Rewrite.apply(name)
	if rewritten != name && !isRepository(rewritten) {
		return "", &Problem{Key: e.Source, Reason: fmt.Sprintf("rewrites the repository %q to %q, which is no name of one", name, rewritten)}
	}
	return rewritten, nil
}

// Scope is the repository as tokens for it name it: within the registry that serves the API. false: that cannot be
// known before the registry says so.
func (e *Endpoint) Scope(repository string) (string, bool) {
	if strings.HasSuffix(e.API.Path, "/v2") {
		return repository, true
	}
	_, prefix, ok := strings.Cut(e.API.Path, "/v2/")
	return path.Join(prefix, repository), ok
}

// apiRoot is the base with /v2 at its end, once.
func apiRoot(base *url.URL, override bool) *url.URL {
	api := *base
	api.RawPath = ""
	api.Path = path.Clean("/" + base.Path)
	if !override && !strings.HasSuffix(api.Path, "/v2") {
		api.Path = path.Join(api.Path, "v2")
	}
	return &api
}

// APIHost is where the API of a registry is. Docker's is not where its name says.
func APIHost(host string) string {
	switch host {
	case "docker.io", "index.docker.io":
		return "registry-1.docker.io"
	}
	return host
}

// IsLoopback tells whether a host is this machine: what goes to the machine itself cannot be listened to on the way.
func IsLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return name == "localhost" || err == nil && addr.IsLoopback()
}
