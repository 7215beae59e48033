package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"criserver/pkg/imagesvc/verify"
)

// MaxManifest is the largest manifest in bytes, as registries have it (distribution-spec, "Pushing Manifests").
const MaxManifest = 4 << 20

// Media types of Docker's manifests; OCI's are in image-spec.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, MediaTypeDockerList, MediaTypeDockerManifest, "*/*",
}, ", ")

// Repository fetches one image. Its methods may be called at the same time.
type Repository struct {
	ref       Reference
	config    *Config
	endpoints []*endpoint
	secrets   *secrets
}

// endpoint is a server with the credentials for it.
type endpoint struct {
	*server
	keys *keyring
	// avoid is set when the endpoint gave no answer, or a wrong one: the rest of the pull goes to others.
	avoid atomic.Bool
}

// Manifest is a manifest or index as it came.
type Manifest struct {
	ocispec.Descriptor
	Data []byte
}

// Reference is the image that the repository was made for.
func (r *Repository) Reference() Reference { return r.ref }

// Digest asks which manifest the reference is of, without fetching it. "": the registry does not say.
func (r *Repository) Digest(ctx context.Context) (digest.Digest, error) {
	var found digest.Digest
	err := r.each(ctx, "look up "+r.ref.String(), func(e *endpoint) error {
		resp, err := r.send(ctx, e, http.MethodHead, "manifests/"+r.ref.object(), http.Header{"Accept": {acceptManifests}})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); verify.CheckDigest(d) == nil {
			found = d
		}
		return nil
	})
	return found, err
}

// Manifest fetches the manifest of the given digest, or with "" that of the reference. It is verified if it was asked
// for by digest. ErrNotFound, ErrUnauthorized, ErrUnavailable, ErrDigest, ErrStalled.
func (r *Repository) Manifest(ctx context.Context, d digest.Digest) (Manifest, error) {
	ref := r.ref
	if d != "" {
		ref = ref.WithDigest(d)
	}
	return r.manifest(ctx, ref)
}

func (r *Repository) manifest(ctx context.Context, ref Reference) (Manifest, error) {
	var m Manifest
	err := r.each(ctx, "fetch manifest of "+ref.String(), func(e *endpoint) error {
		resp, err := r.send(ctx, e, http.MethodGet, "manifests/"+ref.object(), http.Header{"Accept": {acceptManifests}})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		m, err = readManifest(resp, ref.Digest())
		return err
	})
	return m, err
}

func readManifest(resp *http.Response, want digest.Digest) (Manifest, error) {
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return Manifest{}, err
	}
	if len(data) > MaxManifest {
		return Manifest{}, fmt.Errorf("manifest is larger than %d bytes", MaxManifest)
	}
	if want == "" {
		// The registry's word, in whatever algorithm it chose, so that the image gets the digest it is known by.
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if verify.CheckDigest(want) != nil {
			want = digest.FromBytes(data)
		}
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return Manifest{}, fmt.Errorf("manifest has digest %s, want %s: %w", got, want, ErrDigest)
	}
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		mediaType = "" // the manifest itself may say
	}
	return Manifest{ocispec.Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(data))}, data}, nil
}

// CanTryElsewhere tells whether an endpoint is left that has not failed this pull yet.
func (r *Repository) CanTryElsewhere() bool {
	return slices.ContainsFunc(r.endpoints, func(e *endpoint) bool { return !e.avoid.Load() })
}

// each asks the endpoints in order until one succeeds, those that failed only if there is no other.
func (r *Repository) each(ctx context.Context, what string, ask func(*endpoint) error) error {
	var attempts []attempt
	var good, bad []*endpoint
	for _, e := range r.endpoints {
		if e.avoid.Load() {
			bad = append(bad, e)
		} else {
			good = append(good, e)
		}
	}
	if len(good) == 0 {
		good = bad
	}
	for _, e := range good {
		err := ask(e)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
		kind := kindOf(err)
		if errors.Is(kind, ErrUnavailable) || isDamage(kind) {
			e.avoid.Store(true)
		}
		attempts = append(attempts, attempt{e, err, kind})
	}
	return r.failed(what, attempts)
}

// send makes one request to one endpoint. The body of the response gives up when nothing comes, see watched.
func (r *Repository) send(ctx context.Context, e *endpoint, method, path string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	// Said beforehand, the scope finds the token of the requests before this one.
	ctx = auth.WithScopesForHost(ctx, e.base.Host, auth.ScopeRepository(r.ref.Path(), auth.ActionPull))
	u := e.base.JoinPath("v2", r.ref.Path(), path)
	if !e.own {
		// A mirror of several registries can know by this whose image is wanted (containerd's convention).
		u.RawQuery = "ns=" + r.ref.Domain()
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	req.Header = header
	resp, err := e.keys.do(req)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = watch(ctx, cancel, resp.Body, r.config.NoProgress)
	if resp.StatusCode/100 != 2 {
		err := newStatus(resp)
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}
