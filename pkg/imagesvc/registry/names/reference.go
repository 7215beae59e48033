// Package names reads names of images (distribution/reference), and knows what those without a registry stand for.
package names

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/verify"
)

// ErrInvalid says that a name, or a rule, can never work.
var ErrInvalid = errors.New("invalid")

// Reference names an image in a registry, by tag or by digest.
type Reference struct {
	named  reference.Named
	tag    string
	digest digest.Digest
}

// Parse completes a name as docker and the kubelet do: "busybox" is "docker.io/library/busybox:latest". Of a name with
// both a tag and a digest only the digest counts, as with containerd: the tag may have moved on. The registry's host gets
// its canonical form, in small letters and without the port of https, since rules for it go by its name. ErrInvalid.
func Parse(s string) (Reference, error) {
	named, err := reference.ParseDockerRef(s)
	if err == nil {
		if domain := canonicalDomain(reference.Domain(named)); domain != reference.Domain(named) {
			named, err = reference.ParseDockerRef(domain + strings.TrimPrefix(named.String(), reference.Domain(named)))
		}
	}
	if err != nil {
		return Reference{}, fmt.Errorf("image name %q: %w: %w", s, ErrInvalid, err)
	}
	if err := checkHost(reference.Domain(named)); err != nil {
		return Reference{}, fmt.Errorf("image name %q: %w: %w", s, ErrInvalid, err)
	}
	r := Reference{named: reference.TrimNamed(named)}
	switch named := named.(type) {
	case reference.Digested:
		r.digest = named.Digest()
		if err := verify.CheckDigest(r.digest); err != nil {
			return Reference{}, fmt.Errorf("image name %q: %w: %w", s, ErrInvalid, err)
		}
	case reference.Tagged:
		r.tag = named.Tag()
	}
	return r, nil
}

// checkHost refuses what nothing can be reached at: the grammar of names takes any digits for a port.
func checkHost(domain string) error {
	u, err := url.Parse("https://" + domain)
	if err != nil {
		return fmt.Errorf("host %q: %w", domain, err)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("port %s of host %q is not from 1 to 65535", port, u.Hostname())
		}
	}
	return nil
}

func canonicalDomain(domain string) string {
	domain = strings.ToLower(domain)
	// Without a port some names would be no host's any more, and loopback addresses mean plain HTTP.
	if host := strings.TrimSuffix(domain, ":443"); strings.Contains(host, ".") && !strings.HasPrefix(host, "127.") {
		return host
	}
	return domain
}

// Domain is the registry's host, as in the name: "docker.io", "localhost:5000".
func (r Reference) Domain() string { return reference.Domain(r.named) }

// Path is the repository in the registry: "library/busybox".
func (r Reference) Path() string { return reference.Path(r.named) }

// Name is the repository with its registry: "docker.io/library/busybox".
func (r Reference) Name() string { return r.named.Name() }

// Tag is "" in a name with a digest.
func (r Reference) Tag() string { return r.tag }

// Digest is "" in a name with a tag.
func (r Reference) Digest() digest.Digest { return r.digest }

// WithTag is another name in the same repository. The tag must be one.
func (r Reference) WithTag(tag string) Reference { return Reference{named: r.named, tag: tag} }

// WithDigest is the name of another manifest in the same repository.
func (r Reference) WithDigest(d digest.Digest) Reference {
	return Reference{named: r.named, digest: d}
}

// Object is how the registry's API names it: the tag or the digest.
func (r Reference) Object() string {
	if r.digest != "" {
		return r.digest.String()
	}
	return r.tag
}

// String is the whole name: "docker.io/library/busybox:latest", "docker.io/library/busybox@sha256:…".
func (r Reference) String() string {
	if r.digest != "" {
		return r.Name() + "@" + r.digest.String()
	}
	return r.Name() + ":" + r.tag
}
