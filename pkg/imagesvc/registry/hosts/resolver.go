package hosts

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Config is how registries are reached. The zero value reaches each by HTTPS, those on this machine by HTTP too.
type Config struct {
	// Registries are settings by host as in the names of images, "docker.io", "localhost:5000", or Default.
	Registries map[string]Registry
	// Dirs are directories of the layout certs.d/<host>/; those that do not exist count as empty.
	Dirs []string
}

// Registry is how one registry is reached.
type Registry struct {
	// Mirrors are tried in order before the registry itself. One that is the registry itself replaces the last try.
	Mirrors []Entry
	// NoFallback leaves the registry itself out.
	NoFallback bool
	// Insecure accepts any certificate of the registry itself, and plain HTTP if it has no TLS.
	Insecure bool
	// Source names the configuration key, for messages.
	Source string
}

// Resolver finds the endpoints of registries.
type Resolver struct {
	registries map[string]registry // by API host, and Default
	dirs       *dirs
}

type registry struct {
	Registry
	mirrors []*Endpoint
}

// NewResolver checks the form of the configuration. Files are read when they are needed. The error is of ErrConfig.
func NewResolver(c Config) (*Resolver, error) {
	r := &Resolver{registries: map[string]registry{}, dirs: newDirs(c.Dirs)}
	for _, host := range slices.Sorted(maps.Keys(c.Registries)) {
		own := registry{Registry: c.Registries[host]}
		if own.Source == "" {
			own.Source = host
		}
		for i, entry := range own.Mirrors {
			e, f := entry.endpoint("/")
			source := fmt.Sprintf("%s.endpoints[%d]", own.Source, i)
			if f != nil {
				return nil, &Problem{Key: source + "." + f.key, Reason: f.reason}
			}
			e.Source = source
			own.mirrors = append(own.mirrors, e)
		}
		if own.NoFallback && len(own.mirrors) == 0 {
			return nil, &Problem{Key: own.Source, Reason: "no mirror, and no fallback to the registry itself"}
		}
		r.registries[APIHost(host)] = own
	}
	return r, nil
}

// Endpoints lists where to ask for images of a registry, in order, and what the list was made of. The host is as in
// the names of images. The error, of ErrConfig, names file and line.
func (r *Resolver) Endpoints(host string) (endpoints []*Endpoint, source string, err error) {
	if own, ok := r.registries[APIHost(host)]; ok {
		return own.endpoints(host), own.Source, nil
	}
	found, err := r.dirs.find(host)
	if err != nil {
		return nil, "", err
	}
	if found != nil && !found.isDefault {
		return found.endpoints(host), found.source(), nil
	}
	if own, ok := r.registries[Default]; ok {
		return own.endpoints(host), own.Source, nil
	}
	if found != nil {
		return found.endpoints(host), found.source(), nil
	}
	return itself(host, Endpoint{Source: builtIn, Capabilities: All}), builtIn, nil
}

const builtIn = "built in"

func (r registry) endpoints(host string) []*Endpoint {
	list := mirrorsOf(host, r.mirrors)
	if r.NoFallback {
		return list
	}
	last := Endpoint{Source: r.Source, Capabilities: All}
	if !r.Insecure {
		return withLast(list, itself(host, last))
	}
	secure := last
	secure.TLS.SkipVerify = true
	secure.place(&url.URL{Scheme: "https", Host: APIHost(host)}, host)
	plain := last
	plain.place(&url.URL{Scheme: "http", Host: APIHost(host)}, host)
	plain.Plain = r.Source + " says insecure"
	return withLast(list, []*Endpoint{&secure, &plain})
}

// itself makes the endpoints of a registry's own host.
func itself(host string, like Endpoint) []*Endpoint {
	secure := like
	secure.place(&url.URL{Scheme: "https", Host: APIHost(host)}, host)
	if !IsLoopback(host) || like.TLS.given() {
		return []*Endpoint{&secure}
	}
	plain := like
	plain.place(&url.URL{Scheme: "http", Host: APIHost(host)}, host)
	plain.Plain = "the registry is on this machine"
	return []*Endpoint{&secure, &plain}
}

// place puts a last endpoint at a URL.
func (e *Endpoint) place(u *url.URL, host string) {
	e.Base, e.API = u, apiRoot(u, false)
	e.complete(host, true)
}

// complete fills in what depends on the registry whose endpoint it is.
func (e *Endpoint) complete(host string, last bool) {
	e.Own = strings.EqualFold(e.Base.Host, APIHost(host))
	e.Last = last
	switch {
	case e.DialTimeout != 0:
	case last || e.Own:
		e.DialTimeout = OwnDialTimeout
	default:
		e.DialTimeout = MirrorDialTimeout
	}
	if e.Base.Scheme == "http" && e.Plain == "" {
		e.Plain = "its URL begins with http://"
	}
}

// mirrorsOf makes endpoints for one registry of what was configured.
func mirrorsOf(host string, configured []*Endpoint) []*Endpoint {
	var list []*Endpoint
	for _, c := range configured {
		list = append(list, expand(c, host, false)...)
	}
	return list
}

// expand asks a server that was configured with both http:// and settings of TLS by TLS first, as containerd does.
func expand(configured *Endpoint, host string, last bool) []*Endpoint {
	e := *configured
	e.complete(host, last)
	if e.Base.Scheme != "http" || !e.TLS.given() || e.Base.Port() == "" || e.Base.Port() == "80" {
		return []*Endpoint{&e}
	}
	secure := e
	base, api := *e.Base, *e.API
	base.Scheme, api.Scheme = "https", "https"
	secure.Base, secure.API, secure.Plain = &base, &api, ""
	return []*Endpoint{&secure, &e}
}

// withLast appends the last endpoints, for what those before them are not asked already.
func withLast(list, last []*Endpoint) []*Endpoint {
	all := list
	for _, e := range last {
		rest := *e
		for _, before := range list {
			if before.Own && e.Own || before.API.String() == e.API.String() {
				rest.Capabilities &^= before.Capabilities
			}
		}
		if rest.Capabilities != 0 {
			all = append(all, &rest)
		}
	}
	return all
}
