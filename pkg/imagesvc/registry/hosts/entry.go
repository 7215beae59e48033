package hosts

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/net/http/httpguts"
)

// Entry is an endpoint as an operator writes it.
type Entry struct {
	// URL is the base of its API: http://host or https://host, with a path at most. /v2 is added if it is not there.
	// Plain HTTP is used only if it begins with http://.
	URL string
	// OverridePath says that the path of the URL is the root of the API: no /v2 is added.
	OverridePath bool
	// Capabilities are resolve, pull, push. None are all.
	Capabilities []string
	// CA are PEM files, or directories of *.crt, with certificates to trust beside the system's.
	CA []string
	// Client are certificates with keys to show.
	Client []KeyPair
	// SkipVerify accepts any certificate.
	SkipVerify bool
	// Header is sent with each request to this host.
	Header map[string][]string
	// Rewrite changes the names of repositories at this endpoint: regular expressions and their replacements, in which $1
	// is what the first parentheses matched. The first that matches counts: the longest expression is tried first, of
	// equal ones the first by alphabet.
	Rewrite map[string]string
	// DialTimeout bounds connecting. 0 is MirrorDialTimeout.
	DialTimeout time.Duration
	// Proxy is the URL of a proxy to use instead of what the environment says.
	Proxy string
	// TakesCredentials says that the endpoint may see the credentials of pulls, which are meant for the registry it is a
	// mirror of. Those configured for the endpoint's own host need no permission.
	TakesCredentials bool
}

// fault is a Problem before it is known where it stands.
type fault struct{ key, reason string }

func (f *fault) Error() string { return f.key + ": " + f.reason }

func faulty(key, format string, args ...any) *fault { return &fault{key, fmt.Sprintf(format, args...)} }

// Check tells what is wrong with the entry's form, key first; files are not looked at.
func (e Entry) Check() error {
	if _, f := e.endpoint("/"); f != nil {
		return f
	}
	return nil
}

// endpoint checks the entry's form. base is what relative file names are relative to.
func (e Entry) endpoint(base string) (*Endpoint, *fault) {
	u, f := parseURL(e.URL)
	if f != nil {
		return nil, f
	}
	out := &Endpoint{
		Base: u, API: apiRoot(u, e.OverridePath), DialTimeout: e.DialTimeout, TakesCredentials: e.TakesCredentials,
	}
	if out.TLS, f = e.tls(base); f != nil {
		return nil, f
	}
	if f := e.options(out); f != nil {
		return nil, f
	}
	return out, nil
}

// options are what an endpoint has beside URL and TLS. The entry of a registry itself needs no URL.
func (e Entry) options(out *Endpoint) (f *fault) {
	if out.Capabilities, f = parseCapabilities(e.Capabilities); f != nil {
		return f
	}
	if out.Header, f = parseHeader(e.Header); f != nil {
		return f
	}
	if out.Rewrite, f = parseRewrites(e.Rewrite); f != nil {
		return f
	}
	if e.DialTimeout < 0 {
		return faulty("dial_timeout", "%s is negative", e.DialTimeout)
	}
	out.Proxy, f = parseProxy(e.Proxy)
	return f
}

func parseURL(text string) (*url.URL, *fault) {
	u, err := url.Parse(text)
	if err != nil {
		// What the parser says quotes the URL, which may have a password in it.
		return nil, faulty("url", "is not a URL such as https://mirror.example")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "0" || u.User != nil || u.RawQuery != "" ||
		u.ForceQuery || u.Fragment != "" {
		return nil, faulty("url", "want http://host or https://host, with a path at most")
	}
	u.Host = APIHost(strings.ToLower(u.Host))
	return u, nil
}

func (e Entry) tls(base string) (TLS, *fault) {
	t := TLS{SkipVerify: e.SkipVerify}
	absolute := func(name string) string {
		if name == "" || filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(base, name)
	}
	for _, ca := range e.CA {
		if ca == "" || strings.ContainsRune(ca, 0) {
			return t, faulty("ca", "%q is no file name", ca)
		}
		t.CA = append(t.CA, absolute(ca))
	}
	for _, c := range e.Client {
		if c.Cert == "" || strings.ContainsRune(c.Cert+c.Key, 0) {
			return t, faulty("client", "%q, %q are no names of a certificate and a key", c.Cert, c.Key)
		}
		t.Client = append(t.Client, KeyPair{absolute(c.Cert), absolute(c.Key)})
	}
	return t, nil
}

func parseCapabilities(names []string) (Capability, *fault) {
	if len(names) == 0 {
		return All, nil
	}
	var c Capability
	for _, name := range names {
		i := slices.Index(capabilityNames, strings.ToLower(name))
		if i < 0 {
			return 0, faulty("capabilities", "%q is not one of %s", name, strings.Join(capabilityNames, ", "))
		}
		c |= 1 << i
	}
	return c, nil
}

// parseHeader quotes no value: they may be secret.
func parseHeader(fields map[string][]string) (http.Header, *fault) {
	if len(fields) == 0 {
		return nil, nil
	}
	h := http.Header{}
	for name, values := range fields {
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, faulty("header", "%q is no name of a header field", name)
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return nil, faulty("header", "the value of %s is not allowed in a header field", name)
			}
			h.Add(name, v)
		}
	}
	return h, nil
}

func parseProxy(text string) (*url.URL, *fault) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, faulty("proxy", "is not a URL such as http://proxy.example:8080") // it may have a password in it
	}
	return u, nil
}

// Rewrites change names of repositories.
type Rewrites []rewrite

type rewrite struct {
	match *regexp.Regexp
	with  string
}

func parseRewrites(rules map[string]string) (Rewrites, *fault) {
	var out Rewrites
	for match, with := range rules {
		re, err := regexp.Compile(match)
		if err != nil {
			return nil, faulty("rewrite", "%q is no regular expression: %v", match, err)
		}
		out = append(out, rewrite{re, with})
	}
	slices.SortFunc(out, func(a, b rewrite) int {
		x, y := a.match.String(), b.match.String()
		return cmp.Or(cmp.Compare(len(y), len(x)), cmp.Compare(x, y))
	})
	return out, nil
}

func (r Rewrites) apply(name string) string {
	for _, rule := range r {
		if rule.match.MatchString(name) {
			return rule.match.ReplaceAllString(name, rule.with)
		}
	}
	return name
}

func isRepository(name string) bool {
	_, err := reference.WithName("registry.example/" + name)
	return err == nil
}
