package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"criserver/pkg/imagesvc/registry/failure"
	"criserver/pkg/imagesvc/registry/stall"
	"criserver/pkg/imagesvc/verify"
)

const (
	// maxReferrers bounds a list of referrers, maxPages the answers that it is made of.
	maxReferrers = 10_000
	maxPages     = 100
)

// tags are distribution-spec, "Pulling manifests".
var tags = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

func isTag(s string) bool { return tags.MatchString(s) }

// ManifestByTag fetches the manifest of another tag of the repository, such as that of a signature. Its errors are
// Manifest's, and ErrInvalid.
func (r *Repository) ManifestByTag(ctx context.Context, tag string) (Manifest, error) {
	if !isTag(tag) {
		return Manifest{}, fmt.Errorf("fetch manifest: %w: %q is not a tag", ErrInvalid, tag)
	}
	return r.manifest(ctx, r.ref.WithTag(tag))
}

// Referrers lists the manifests that say they belong to a manifest of the repository, those of one kind or with "" all. A
// registry without that API is asked for the tag that stands in for it (distribution-spec, "Listing Referrers" and
// "Referrers Tag Schema"). It is empty for a manifest that nothing refers to, or that is not there.
func (r *Repository) Referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if err := verify.CheckDigest(d); err != nil {
		return nil, fmt.Errorf("list referrers: %w: %w", ErrInvalid, err)
	}
	var all []ocispec.Descriptor
	unsupported := false
	err := r.each(ctx, "list referrers of "+r.ref.WithDigest(d).String(), func(e *endpoint) error {
		var err error
		all, err = r.pages(ctx, e, d, artifactType)
		var s *failure.Status
		unsupported = errors.As(err, &s) && (s.Code == http.StatusNotFound || s.Code == http.StatusMethodNotAllowed)
		return err
	})
	if err == nil || !unsupported {
		return all, err
	}
	m, err := r.ManifestByTag(ctx, referrersTag(d))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if all, err = referrersIn(m.Data); err != nil {
		return nil, fmt.Errorf("list referrers of %s by tag: %w", r.ref.WithDigest(d), err)
	}
	return ofType(all, artifactType), nil
}

// referrersTag is the tag of the list where there is no API for it.
func referrersTag(d digest.Digest) string {
	const maxAlgorithm, maxHex = 32, 64
	algorithm, hex := d.Algorithm().String(), d.Encoded()
	return algorithm[:min(maxAlgorithm, len(algorithm))] + "-" + hex[:min(maxHex, len(hex))]
}

// pages reads the whole list from one endpoint.
func (r *Repository) pages(ctx context.Context, e *endpoint, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	next := r.url(e, "referrers/"+d.String())
	if artifactType != "" {
		q := next.Query()
		q.Set("artifactType", artifactType)
		next.RawQuery = q.Encode()
	}
	var all []ocispec.Descriptor
	for range maxPages {
		page, following, err := r.page(ctx, e, next, artifactType)
		if err != nil {
			return nil, err
		}
		if all = append(all, page...); len(all) > maxReferrers {
			break
		}
		if following == nil {
			return all, nil
		}
		next = following
	}
	return nil, fmt.Errorf("the list of referrers is longer than %d entries or %d pages", maxReferrers, maxPages)
}

func (r *Repository) page(ctx context.Context, e *endpoint, u *url.URL, artifactType string) ([]ocispec.Descriptor, *url.URL, error) {
	ctx, cancel, _ := stall.Exchange(ctx, r.config.NoProgress, r.config.Backoff)
	defer cancel(nil)
	ctx = auth.WithScopesForHost(ctx, e.base.Host, auth.ScopeRepository(r.ref.Path(), auth.ActionPull))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageIndex)
	resp, err := sent(e, req)
	if err != nil {
		return nil, nil, err
	}
	resp.Body = stall.Watch(ctx, cancel, resp.Body, r.config.NoProgress, 1)
	defer discard(resp)
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > MaxManifest {
		return nil, nil, fmt.Errorf("the list of referrers is larger than %d bytes", MaxManifest)
	}
	list, err := referrersIn(data)
	if err != nil {
		return nil, nil, err
	}
	if !strings.Contains(resp.Header.Get("OCI-Filters-Applied"), "artifactType") {
		list = ofType(list, artifactType)
	}
	next, err := nextPage(e, resp)
	return list, next, err
}

// referrersIn reads an index.
func referrersIn(data []byte) ([]ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("decode list of referrers: %w", err)
	}
	if index.MediaType != "" && index.MediaType != ocispec.MediaTypeImageIndex {
		return nil, fmt.Errorf("the list of referrers is of type %q, not an index", index.MediaType)
	}
	for _, m := range index.Manifests {
		if err := verify.CheckDigest(m.Digest); err != nil {
			return nil, fmt.Errorf("the list of referrers has a bad entry: %w", err)
		}
		if m.Size < 0 {
			return nil, fmt.Errorf("the list of referrers has an entry of size %d", m.Size)
		}
	}
	return index.Manifests, nil
}

func ofType(all []ocispec.Descriptor, artifactType string) []ocispec.Descriptor {
	if artifactType == "" {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(d ocispec.Descriptor) bool { return d.ArtifactType != artifactType })
}

// nextPage is what a Link header points to (RFC 8288), nil after the last page. It must be of the same server.
func nextPage(e *endpoint, resp *http.Response) (*url.URL, error) {
	for _, link := range resp.Header.Values("Link") {
		target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
		if !ok || !strings.Contains(strings.NewReplacer(" ", "", `"`, "").Replace(params), "rel=next") {
			continue
		}
		u, err := resp.Request.URL.Parse(target)
		if err != nil {
			return nil, errors.New("the registry's link to the next page is no URL")
		}
		if !strings.EqualFold(u.Hostname(), e.base.Hostname()) || !strings.Contains(u.Path, "/referrers/") {
			return nil, fmt.Errorf("the registry's next page is at %s, which is refused", u.Host)
		}
		u.Scheme, u.Host, u.User = e.base.Scheme, e.base.Host, nil
		return u, nil
	}
	return nil, nil
}
