package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"criserver/pkg/imagesvc/registry/failure"
	"criserver/pkg/imagesvc/registry/hosts"
	"criserver/pkg/imagesvc/registry/upload"
	"criserver/pkg/imagesvc/verify"
)

// Pusher uploads to one repository: blobs first, then the manifests that name them. Its methods may be called at the same
// time, and their errors are of the kinds of fetches.
type Pusher struct{ repo *Repository }

// Pushed is how a blob came to be in the repository.
type Pushed string

// What PushBlob did.
const (
	// PushExists: it was there.
	PushExists Pushed = "exists"
	// PushMounted: the registry took it from another repository.
	PushMounted Pushed = "mounted"
	// PushUploaded: its bytes were sent.
	PushUploaded Pushed = "uploaded"
)

// BlobOptions of PushBlob.
type BlobOptions struct {
	// From are repositories of the same registry ("library/busybox") that may have the blob, and from which it is mounted.
	From []string
	// Progress is called with the number of bytes that were sent, from one goroutine at a time. It goes back when an upload
	// starts again.
	Progress func(sent int64)
}

// Pusher returns what uploads to the repository of ref. Mirrors have no part in it. ErrInvalid: a malformed credential, or
// a registry that may not be asked itself.
func (c *Client) Pusher(ref Reference, a Auth) (*Pusher, error) {
	servers, source, err := c.pushServers(ref.Domain())
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w", ref.Domain(), err)
	}
	if len(servers) == 0 {
		return nil, fmt.Errorf("push to %s: %w: the configuration has mirrors only, and no fallback to the registry itself",
			ref.Name(), ErrInvalid)
	}
	repo, err := c.repository(ref, a, servers, source)
	if err != nil {
		return nil, err
	}
	return &Pusher{repo}, nil
}

// pushServers are those that take uploads.
func (c *Client) pushServers(domain string) ([]*server, string, error) {
	all, source, err := c.servers(domain)
	return slices.DeleteFunc(all, func(s *server) bool { return !s.own || !s.Capabilities.Has(hosts.Push) }), source, err
}

// Reference is what the pusher was made for.
func (p *Pusher) Reference() Reference { return p.repo.ref }

// Exists tells whether the repository has a blob.
func (p *Pusher) Exists(ctx context.Context, d digest.Digest) (bool, error) {
	if err := verify.CheckDigest(d); err != nil {
		return false, fmt.Errorf("look up blob: %w: %w", ErrInvalid, err)
	}
	return p.exists(ctx, "blobs/"+d.String(), nil)
}

// ManifestExists tells whether the repository has a manifest.
func (p *Pusher) ManifestExists(ctx context.Context, d digest.Digest) (bool, error) {
	if err := verify.CheckDigest(d); err != nil {
		return false, fmt.Errorf("look up manifest: %w: %w", ErrInvalid, err)
	}
	return p.exists(ctx, "manifests/"+d.String(), http.Header{"Accept": {acceptManifests}})
}

func (p *Pusher) exists(ctx context.Context, object string, header http.Header) (bool, error) {
	err := p.repo.each(ctx, "look up "+object+" in "+p.repo.ref.Name(), func(e *endpoint) error {
		resp, err := p.ask(ctx, e, http.MethodHead, object, header, nil)
		discard(resp)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Manifest uploads a manifest or index, and returns its digest. Under the reference's tag or digest if object is "", which a
// digest must fit; else under another tag or digest of the repository. ErrInvalid, ErrDigest.
func (p *Pusher) Manifest(ctx context.Context, object, mediaType string, data []byte) (digest.Digest, error) {
	if object == "" {
		object = p.repo.ref.Object()
	}
	what := "push manifest " + object + " to " + p.repo.ref.Name()
	if len(data) > MaxManifest {
		return "", fmt.Errorf("%s: %w: it is larger than %d bytes", what, ErrInvalid, MaxManifest)
	}
	got := digest.FromBytes(data)
	if want := digest.Digest(object); strings.Contains(object, ":") {
		if err := verify.CheckDigest(want); err != nil {
			return "", fmt.Errorf("%s: %w: %w", what, ErrInvalid, err)
		}
		if got = want.Algorithm().FromBytes(data); got != want {
			return "", fmt.Errorf("%s: it has digest %s: %w", what, got, ErrDigest)
		}
	} else if !isTag(object) {
		return "", fmt.Errorf("%s: %w: not a tag", what, ErrInvalid)
	}
	err := p.repo.each(ctx, what, func(e *endpoint) error {
		resp, err := p.ask(ctx, e, http.MethodPut, "manifests/"+object, http.Header{"Content-Type": {mediaType}}, data)
		discard(resp)
		if err != nil {
			return err
		}
		if stored := digest.Digest(resp.Header.Get("Docker-Content-Digest")); stored != "" && stored.Algorithm() == got.Algorithm() && stored != got {
			return fmt.Errorf("the registry stored %s, sent was %s: %w", stored, got, ErrDigest)
		}
		return nil
	})
	return got, err
}

// ask makes a request below the repository. A response is a success.
func (p *Pusher) ask(ctx context.Context, e *endpoint, method, path string, header http.Header, body []byte) (*http.Response, error) {
	u := p.repo.url(e, path)
	req, err := http.NewRequestWithContext(p.scoped(ctx, e), method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	return sent(e, req)
}

// scoped says beforehand what a token is needed for, also for mounting from other repositories.
func (p *Pusher) scoped(ctx context.Context, e *endpoint, from ...string) context.Context {
	scopes := []string{auth.ScopeRepository(p.repo.ref.Path(), auth.ActionPull, auth.ActionPush)}
	for _, path := range from {
		scopes = append(scopes, auth.ScopeRepository(path, auth.ActionPull))
	}
	return auth.WithScopesForHost(ctx, e.base.Host, scopes...)
}

// sent is do with an error for what is no success.
func sent(e *endpoint, req *http.Request) (*http.Response, error) {
	resp, err := e.keys.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		err := failure.NewStatus(resp)
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}

// PushBlob brings content of a known digest and size into the repository, unless it is there. content is read from any
// place and more than once, and must not change. The registry verifies it.
func (p *Pusher) PushBlob(ctx context.Context, d ocispec.Descriptor, content io.ReaderAt, o BlobOptions) (Pushed, error) {
	there, err := p.Exists(ctx, d.Digest)
	if err != nil {
		return "", err
	}
	if there {
		return PushExists, nil
	}
	u := p.upload(d, content, o.Progress)
	mounted := false
	err = p.repo.each(ctx, fmt.Sprintf("push blob %s to %s", d.Digest, p.repo.ref.Name()), func(e *endpoint) error {
		var err error
		mounted, err = u.Run(ctx, p.target(e), p.others(o.From))
		return err
	})
	switch readErr := u.ReadError(); {
	case readErr != nil: // not the registry's fault
		return "", fmt.Errorf("push blob %s: read: %w", d.Digest, readErr)
	case err != nil:
		return "", err
	case mounted:
		return PushMounted, nil
	}
	return PushUploaded, nil
}

// Mount tells whether the repository has a blob, or has it now that it was asked to take it from one of the other repositories
// of the same registry ("library/busybox").
func (p *Pusher) Mount(ctx context.Context, d ocispec.Descriptor, from []string) (bool, error) {
	there, err := p.Exists(ctx, d.Digest)
	if there || err != nil {
		return there, err
	}
	err = p.repo.each(ctx, fmt.Sprintf("mount blob %s in %s", d.Digest, p.repo.ref.Name()), func(e *endpoint) (err error) {
		there, err = p.upload(d, nil, nil).Mount(ctx, p.target(e), p.others(from))
		return err
	})
	return there, err
}

func (p *Pusher) upload(d ocispec.Descriptor, content io.ReaderAt, progress func(int64)) *upload.Upload {
	return upload.New(upload.Options{
		Blob: d, Content: content, Progress: progress, NoProgress: p.repo.config.NoProgress, Pause: p.repo.config.pause,
	})
}

// target is the repository at an endpoint.
func (p *Pusher) target(e *endpoint) upload.Target {
	return upload.Target{
		Base: e.base, Uploads: p.repo.url(e, "blobs/uploads/"),
		Do: func(req *http.Request) (*http.Response, error) { return sent(e, req) },
		Scoped: func(ctx context.Context, from ...string) context.Context {
			return p.scoped(ctx, e, from...)
		},
	}
}

// others are the repositories but the pusher's own.
func (p *Pusher) others(from []string) []string {
	return slices.DeleteFunc(slices.Clone(from), func(repo string) bool { return repo == p.repo.ref.Path() })
}
