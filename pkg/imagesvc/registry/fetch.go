package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// MaxDocument is the largest manifest, index or configuration in bytes that is read.
const MaxDocument = 8 << 20

// manifestTypes are what is asked for, and all that is understood.
var manifestTypes = []string{
	ocispec.MediaTypeImageIndex,
	ocispec.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}

// Source reads one image. It remembers which endpoint answered last and asks that first.
type Source struct {
	client *Client
	ref    Reference
	auth   Auth
	list   []endpoint
}

// Open prepares to read an image; nothing is asked yet.
func (c *Client) Open(ref Reference, a Auth) *Source {
	return &Source{client: c, ref: ref, auth: a, list: c.endpoints(ref.Host)}
}

// Resolve asks what the reference names now and returns the document with its descriptor. It settles which endpoint the
// rest is read from first.
func (s *Source) Resolve(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	var desc ocispec.Descriptor
	var data []byte
	err := s.try(ctx, func(repo *remote.Repository) error {
		ctx, cancel := context.WithCancelCause(ctx)
		d, body, err := repo.Manifests().FetchReference(ctx, s.ref.target())
		if err != nil {
			cancel(nil)
			return err
		}
		r := verify(ctx, cancel, body, d, s.client.config.NoProgress)
		defer r.Close()
		if d.Size > MaxDocument {
			return fmt.Errorf("the manifest has %d bytes, at most %d are read", d.Size, MaxDocument)
		}
		if data, err = io.ReadAll(r); err != nil {
			return err
		}
		desc = d
		return nil
	})
	if err != nil {
		return desc, nil, err
	}
	return desc, data, nil
}

// Document reads a manifest or configuration.
func (s *Source) Document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > MaxDocument {
		return nil, fmt.Errorf("%s: %s has %d bytes, at most %d are read", s.ref, desc.Digest, desc.Size, MaxDocument)
	}
	var data []byte
	err := s.try(ctx, func(repo *remote.Repository) error {
		r, err := s.fetch(ctx, repo, desc)
		if err != nil {
			return err
		}
		defer r.Close()
		data, err = io.ReadAll(r)
		return err
	})
	return bytes.Clone(data), err
}

// Blob opens a layer. The reader ends with ErrTruncated, ErrDigest or ErrStalled unless it is whole and right.
func (s *Source) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	var r io.ReadCloser
	err := s.try(ctx, func(repo *remote.Repository) error {
		var err error
		r, err = s.fetch(ctx, repo, desc)
		return err
	})
	return r, err
}

// fetch opens a manifest or blob by its descriptor.
func (s *Source) fetch(ctx context.Context, repo *remote.Repository, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	body, err := repo.Fetch(ctx, desc)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return verify(ctx, cancel, body, desc, s.client.config.NoProgress), nil
}

// try asks one endpoint after another. The error is that of the last one, the registry itself, with those before it.
func (s *Source) try(ctx context.Context, fn func(*remote.Repository) error) error {
	var errs []error
	for i, e := range s.list {
		repo, err := s.client.repository(e, s.ref, s.auth)
		if err == nil {
			repo.ManifestMediaTypes = manifestTypes // what is no manifest is asked for as a blob
			err = fn(repo)
		}
		if err == nil {
			if i > 0 { // what is asked next goes there first
				s.list = append([]endpoint{e}, append(append([]endpoint{}, s.list[:i]...), s.list[i+1:]...)...)
			}
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err = classify(err)
		logrus.WithError(err).WithFields(logrus.Fields{"image": s.ref.String(), "endpoint": e.URL}).Debug("an endpoint failed")
		errs = append(errs, fmt.Errorf("%s: %w", e.URL, err))
	}
	return fmt.Errorf("read %s: %w", s.ref, pickError(errs))
}

// pickError joins what the endpoints said, the most telling first: that a mirror does not answer matters less than that
// the registry refuses the credentials.
func pickError(errs []error) error {
	for _, kind := range []error{ErrDigest, ErrTruncated, ErrStalled, ErrUnauthorized, ErrNotFound} {
		for i, err := range errs {
			if errors.Is(err, kind) {
				errs[0], errs[i] = errs[i], errs[0]
				return &tried{errs}
			}
		}
	}
	return &tried{errs}
}

// tried is what went wrong at each endpoint; only the first one counts for errors.Is.
type tried struct{ errs []error }

func (t *tried) Error() string {
	s := t.errs[0].Error()
	for _, err := range t.errs[1:] {
		s += "; " + err.Error()
	}
	return s
}

func (t *tried) Unwrap() error { return t.errs[0] }

// classify gives an endpoint's error its kind.
func classify(err error) error {
	var response *errcode.ErrorResponse
	var network net.Error
	switch {
	case errors.Is(err, ErrDigest), errors.Is(err, ErrTruncated), errors.Is(err, ErrStalled), errors.Is(err, ErrInvalid),
		errors.Is(err, ErrUnauthorized):
		return err
	case errors.As(err, &response):
		switch response.StatusCode {
		case http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrNotFound, err)
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w (check the image's name and the pull secret): %w", ErrUnauthorized, err)
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return fmt.Errorf("%w (it wants a pull secret): %w", ErrUnauthorized, err)
	case errors.Is(err, errdef.ErrNotFound):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.As(err, &network):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// Clone returns a source for use by another goroutine.
func (s *Source) Clone() *Source {
	c := *s
	return &c
}
