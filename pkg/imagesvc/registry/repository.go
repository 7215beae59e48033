package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"criserver/pkg/imagesvc/mediatype"
	"criserver/pkg/imagesvc/registry/failure"
	"criserver/pkg/imagesvc/registry/hosts"
	"criserver/pkg/imagesvc/registry/keyring"
	"criserver/pkg/imagesvc/registry/stall"
	"criserver/pkg/imagesvc/verify"
)

// MaxManifest is the largest manifest in bytes, as registries have it (distribution-spec, "Pushing Manifests").
const MaxManifest = 4 << 20

var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, mediatype.DockerIndex, mediatype.DockerManifest, "*/*",
}, ", ")

// Repository fetches one image. Its methods may be called at the same time.
type Repository struct {
	ref        Reference
	config     *Config
	endpoints  []*endpoint
	configured string // what the endpoints come from
	health     *hosts.Health
	secrets    *keyring.Secrets
}

// endpoint is a server with the credentials for it.
type endpoint struct {
	*server
	keys *keyring.Keyring
	// path is the repository as this endpoint names it.
	path string
	// avoid is set when the endpoint gave no answer, or a wrong one: the rest of the pull goes to others.
	avoid atomic.Bool
	last  atomic.Bool // whether there is no other to ask
	heard atomic.Bool // whether it has said anything in this pull
	// noRanges is set when it answered a request for a range wrongly.
	noRanges atomic.Bool
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
	err := r.eachThat(ctx, "look up "+r.ref.String(), needs(r.ref), func(e *endpoint) (err error) {
		found, err = r.head(ctx, e, r.ref)
		return err
	})
	return found, err
}

// head asks one endpoint. "": it does not say.
func (r *Repository) head(ctx context.Context, e *endpoint, ref Reference) (digest.Digest, error) {
	resp, err := r.send(ctx, e, http.MethodHead, "manifests/"+ref.Object(), http.Header{"Accept": {acceptManifests}})
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); verify.CheckDigest(d) == nil {
		return d, nil
	}
	return "", nil
}

// needs is what an endpoint must be able to, to be asked for the manifest.
func needs(ref Reference) hosts.Capability {
	if ref.Digest() == "" {
		return hosts.Resolve
	}
	return hosts.Pull
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
	var resolved digest.Digest
	err := r.eachThat(ctx, "fetch manifest of "+ref.String(), needs(ref), func(e *endpoint) (err error) {
		if !e.Capabilities.Has(hosts.Pull) {
			if resolved, err = r.head(ctx, e, ref); err == nil && resolved == "" {
				err = errors.New("the registry does not say which manifest the tag is of")
			}
			return err
		}
		resp, err := r.send(ctx, e, http.MethodGet, "manifests/"+ref.Object(), http.Header{"Accept": {acceptManifests}})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		m, err = readManifest(resp, ref.Digest())
		return err
	})
	if err == nil && resolved != "" {
		return r.Manifest(ctx, resolved)
	}
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

// CanTryElsewhere tells whether an endpoint is left to pull from that has not failed this pull yet.
func (r *Repository) CanTryElsewhere() bool {
	return slices.ContainsFunc(r.endpoints, func(e *endpoint) bool { return e.Capabilities.Has(hosts.Pull) && !e.avoid.Load() })
}

// Alone splits the repository into one for each endpoint to pull from, in the order in which to try them: those that have not
// failed this pull, then the registry itself, then the others. Each asks its endpoint, whatever that did before.
func (r *Repository) Alone() []*Repository {
	var good, own, rest []*Repository
	for _, e := range r.endpoints {
		alone := *r
		alone.endpoints = []*endpoint{e}
		switch {
		case !e.Capabilities.Has(hosts.Pull):
		case !e.avoid.Load() && r.health.RestsUntil(e.identity).IsZero():
			good = append(good, &alone)
		case !e.mirror():
			own = append(own, &alone)
		default:
			rest = append(rest, &alone)
		}
	}
	return slices.Concat(good, own, rest)
}

// Server is the name of the one endpoint of a repository that Alone returned.
func (r *Repository) Server() string { return r.endpoints[0].name() }

// name tells servers apart, for people too.
func (e *endpoint) name() string { return strings.TrimSuffix(e.API.Host+e.API.Path, "/v2") }

// mirror tells that it is neither the registry itself nor stands in its place.
func (e *endpoint) mirror() bool { return !e.own && !e.Last }

// each is eachThat for what is pulled.
func (r *Repository) each(ctx context.Context, what string, ask func(*endpoint) error) error {
	return r.eachThat(ctx, what, hosts.Pull, ask)
}

// eachThat asks the endpoints of a capability in order until one succeeds, those that failed this pull only if there is
// no other.
func (r *Repository) eachThat(ctx context.Context, what string, can hosts.Capability, ask func(*endpoint) error) error {
	var attempts []attempt
	turn := r.turn(can)
	if len(turn) == 0 {
		return fmt.Errorf("%s: %w", what, r.nobody(can))
	}
	for i, e := range turn {
		e.last.Store(i == len(turn)-1)
		err := ask(e)
		if err == nil {
			r.health.Answered(e.identity)
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
		kind := failure.KindOf(err)
		if errors.Is(kind, ErrUnavailable) || failure.IsDamage(kind) {
			e.avoid.Store(true)
		}
		r.remember(e, err, kind)
		attempts = append(attempts, attempt{e, err, kind})
	}
	return r.failed(what, attempts)
}

func (r *Repository) nobody(can hosts.Capability) error {
	return fmt.Errorf("%w: %s configures no endpoint of %s with the capability %s", ErrInvalid, r.configured, r.ref.Domain(), can)
}

// turn lists the endpoints of a capability in the order in which to ask them now: those that gave no answer to any pull
// lately come last.
func (r *Repository) turn(can hosts.Capability) []*endpoint {
	var good, resting, bad []*endpoint
	for _, e := range r.endpoints {
		switch {
		case !e.Capabilities.Has(can):
		case e.avoid.Load():
			bad = append(bad, e)
		case !r.health.RestsUntil(e.identity).IsZero():
			resting = append(resting, e)
		default:
			good = append(good, e)
		}
	}
	if good = append(good, resting...); len(good) == 0 {
		return bad
	}
	return good
}

// remember has other pulls know whether an endpoint answers. What goes wrong where it redirects to is not its fault.
func (r *Repository) remember(e *endpoint, err, kind error) {
	var answer *failure.Status
	answered := errors.As(err, &answer) && answer.Host == e.base.Host
	unavailable := errors.Is(kind, ErrUnavailable)
	switch {
	case errors.Is(err, failure.ErrNoAnswer), unavailable && (answered || hosts.Unreached(err, e.base.Host)):
		r.health.Failed(e.identity)
	case answered:
		r.health.Answered(e.identity)
	}
}

// silence is how long a mirror may say nothing when there are others to ask, in dial timeouts. It may be a cache that has
// to ask the registry first. Blobs are not waited for in this way: some caches fetch them whole before they say a word.
const silence = 3

// limited tells whether an endpoint must answer soon, since there are others.
func (e *endpoint) limited() bool { return e.mirror() && !e.last.Load() }

// greet finds out whether a mirror is there before it is given the time that a blob takes.
func (r *Repository) greet(ctx context.Context, e *endpoint) error {
	if !e.limited() || e.heard.Load() {
		return nil
	}
	limited, cancel := context.WithTimeoutCause(ctx, silence*e.DialTimeout, failure.ErrNoAnswer)
	defer cancel()
	_, err := r.ping(limited, e)
	if err != nil && errors.Is(context.Cause(limited), failure.ErrNoAnswer) {
		return failure.ErrNoAnswer
	}
	return err
}

// send makes one request to one endpoint. The body of the response gives up when nothing comes, see watched.
func (r *Repository) send(ctx context.Context, e *endpoint, method, path string, header http.Header) (*http.Response, error) {
	isManifest := strings.HasPrefix(path, "manifests/")
	if !isManifest {
		if err := r.greet(ctx, e); err != nil {
			return nil, err
		}
	}
	ctx, cancel, answered := stall.Exchange(ctx, r.config.NoProgress, r.config.Backoff)
	if scope, ok := e.Scope(e.path); ok {
		// Said beforehand, the scope finds the token of the requests before this one.
		ctx = auth.WithScopesForHost(ctx, e.base.Host, auth.ScopeRepository(scope, auth.ActionPull))
	}
	req, err := http.NewRequestWithContext(ctx, method, r.url(e, path).String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	req.Header = header
	if isManifest && e.limited() {
		limit := time.AfterFunc(silence*e.DialTimeout, func() { cancel(failure.ErrNoAnswer) })
		defer limit.Stop()
	}
	resp, err := e.keys.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, failure.ErrNoAnswer) || errors.Is(cause, failure.ErrStalled) {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	e.heard.Store(true)
	least := int64(1) // the exchange has a limit as a whole
	if !isManifest {
		answered()
		least = r.config.least()
	}
	resp.Body = stall.Watch(ctx, cancel, resp.Body, r.config.NoProgress, least)
	if resp.StatusCode/100 != 2 {
		err := failure.NewStatus(resp)
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}

// url is where an endpoint has something of the repository.
func (r *Repository) url(e *endpoint, path string) *url.URL {
	u := e.API.JoinPath(e.path, path)
	if !e.own {
		// A mirror of several registries can know by this whose image is wanted (containerd's convention).
		u.RawQuery = "ns=" + r.ref.Domain()
	}
	return u
}
