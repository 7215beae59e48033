// Package trust decides by signatures which images may be used.
//
// A Policy is a set of scopes, each a registry, a namespace or a repository, with what is required of the images in it:
// nothing, that there be none, or a signature by one of some identities. Of the scopes that an image is in, the longest
// counts, alone:
//
//	docker.io                accept
//	quay.io/org              signed, by the key in /etc/criserver/org.pub
//	quay.io/org/nightly      reject
//
// An identity is a public key, or what a certificate authority such as Fulcio has put into a short-lived certificate: an
// address or URI, and who vouched for it. Signatures are those of cosign, as it has written them since ever and as it
// does now: see find.go. Verification is sigstore's own and asks nobody: keys, authorities and transparency logs are
// files on this machine, and are read again when they change.
//
// What is signed is a digest, and the digest is that of what the image's name is of, as with cosign: for an image of many
// platforms the index. A signed index vouches for the manifests that it names, but not the other way round: where
// platforms' manifests are signed one by one ("cosign sign --recursive" signs both), the caller may Check that of the
// platform too, and use the image if either is good.
package trust

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrRejected is returned when the policy does not let the image be used, or cannot tell, as a file of it is broken.
var ErrRejected = errors.New("image rejected by signature policy")

// Requirement is what is asked of the images of a scope.
type Requirement string

// All requirements.
const (
	Accept Requirement = "accept"
	Reject Requirement = "reject"
	Signed Requirement = "signed"
)

// Config is a policy as an administrator has said it. Without any scope that an image is in, it is accepted.
type Config struct{ Scopes []Scope }

// Scope is what is required of some images.
type Scope struct {
	// Name is a registry's host, "quay.io", or that and the beginning of a path, "quay.io/org" or "quay.io/org/repo",
	// whole components only. "" and "_default" are all images. Docker Hub's "nginx" is in "docker.io/library/nginx".
	Name    string
	Require Requirement

	// Keys and Keyless are the identities; any of them suffices. Signed needs one, the others have none.
	Keys    []string // PEM files of public keys: ECDSA, Ed25519, or RSA of 2048 bits and more
	Keyless []Keyless

	// TrustedRoot is a file of certificate authorities and logs in sigstore's form, trusted_root.json. Keyless,
	// TransparencyLog and TimestampAuthority need one.
	TrustedRoot string
	// TransparencyLog wants a signature to be in a log (Rekor) of the trusted root. nil: with a certificate, but not
	// with a key.
	TransparencyLog *bool
	// TimestampAuthority wants the time of the signature to be signed by an authority (RFC 3161) of the trusted root.
	// Without it, the time at which a certificate must have been valid is that of a log or an authority, whichever the
	// signature has; and where no log is wanted either, it is now.
	TimestampAuthority bool
	// SCT wants certificates to be in a certificate transparency log of the trusted root. nil: yes.
	SCT *bool
}

// Keyless is who a certificate must have been given to, and by whose word. One of each pair must be set. Regular
// expressions (RE2) must match the whole value.
type Keyless struct {
	// The subject: "dev@example.com", "https://github.com/org/repo/.github/workflows/release.yml@refs/heads/main".
	Identity, IdentityRegexp string
	// The OpenID Connect issuer: "https://token.actions.githubusercontent.com".
	Issuer, IssuerRegexp string
}

// Source fetches from the repository of the image that is checked. What it returns has the digest and size that were
// asked for. Documents larger than their caller can handle are an error. Errors come out of Check as they are.
type Source interface {
	// ManifestByTag fetches a manifest. Not found is no error.
	ManifestByTag(ctx context.Context, tag string) (mediaType string, data []byte, found bool, err error)
	// Referrers lists all manifests whose subject is d (OCI distribution-spec, "Listing Referrers"), of a registry
	// without that API those of the referrers tag. None is no error.
	Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error)
	// Manifest fetches a manifest.
	Manifest(ctx context.Context, d digest.Digest) ([]byte, error)
	// Blob fetches a blob of a few MiB at most.
	Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
}

// Policy answers whether images may be used. It may be used by many goroutines.
type Policy struct {
	// scopes are sorted, the longest name first.
	scopes []*scope
}

// New checks the configuration and reads the files that it names. Errors tell the scope and the file.
func New(c Config) (*Policy, error) {
	p := &Policy{}
	for _, sc := range c.Scopes {
		s, err := newScope(sc)
		if err != nil {
			return nil, fmt.Errorf("signature policy of scope %s: %w", quoted(sc.Name), err)
		}
		if slices.ContainsFunc(p.scopes, func(other *scope) bool { return other.name == s.name }) {
			return nil, fmt.Errorf("signature policy of scope %s: there is another one of the same name", s)
		}
		p.scopes = append(p.scopes, s)
	}
	slices.SortFunc(p.scopes, func(a, b *scope) int { return cmp.Compare(len(b.name), len(a.name)) })
	return p, nil
}

// Reload reads all files that have changed. Check does so for itself; this is to learn of mistakes early. Scopes with a
// broken file reject all images until it is mended.
func (p *Policy) Reload() error {
	var errs []error
	for _, s := range p.scopes {
		if _, err := s.identities(); err != nil {
			errs = append(errs, fmt.Errorf("signature policy of scope %s: %w", s, err))
		}
	}
	return errors.Join(errs...)
}

// Required tells whether Check can say anything but yes for images of a repository, "quay.io/org/app".
func (p *Policy) Required(repository string) bool {
	s := p.scopeOf(repository)
	return s != nil && s.Require != Accept
}

// Check returns nil if the image with digest d may be used. The repository has its registry's host before it, in the form
// that the names of images are completed to: "docker.io/library/nginx". Only for scopes that want signatures something is
// fetched. ErrRejected, with a text that tells what was wanted and what was found; or, if no signature was good but some
// could not be fetched, the error of the source.
func (p *Policy) Check(ctx context.Context, repository string, d digest.Digest, src Source) error {
	s := p.scopeOf(repository)
	if s == nil || s.Require == Accept {
		return nil
	}
	image := repository + "@" + d.String()
	if s.Require == Reject {
		return fmt.Errorf("%w: %s: no image of scope %s may be used", ErrRejected, image, s)
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrRejected, image, err)
	}
	identities, err := s.identities()
	if err != nil {
		return fmt.Errorf("%w: %s: signature policy of scope %s: %w", ErrRejected, image, s, err)
	}
	f := finder{src: src, image: d, identities: identities}
	good, err := f.search(ctx)
	if good {
		return nil
	}
	if err != nil {
		return fmt.Errorf("fetch signatures of %s, which scope %s requires: %w", image, s, err)
	}
	return fmt.Errorf("%w: %s: scope %s requires a signature by %s; %s", ErrRejected, image, s, anyOf(identities), f.report)
}

// scopeOf finds the longest scope that a repository is in. nil: none.
func (p *Policy) scopeOf(repository string) *scope {
	for _, s := range p.scopes {
		if s.name == "" || s.name == repository || strings.HasPrefix(repository, s.name+"/") {
			return s
		}
	}
	return nil
}

func anyOf(identities []*identity) string {
	names := make([]string, len(identities))
	for i, id := range identities {
		names[i] = id.name
	}
	return strings.Join(names, ", or ")
}
