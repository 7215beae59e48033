// Package upload brings one blob into a repository of a registry (distribution-spec, "Pushing blobs").
package upload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry/failure"
	"criserver/pkg/imagesvc/registry/hosts"
	"criserver/pkg/imagesvc/registry/keyring"
)

const (
	// chunkSize is that of uploads to registries that refuse a blob in one piece.
	chunkSize = 16 << 20
	// maxChunk bounds what a registry may ask for.
	maxChunk = 1 << 30
)

// Target is a repository at one endpoint.
type Target struct {
	// Base is the endpoint, Uploads where uploads begin.
	Base, Uploads *url.URL
	// Do sends a request with credentials. A response is a success.
	Do func(*http.Request) (*http.Response, error)
	// Scoped says beforehand what a token is needed for: the repository, and others that blobs are mounted from.
	Scoped func(ctx context.Context, from ...string) context.Context
}

// Options are what is uploaded, and how.
type Options struct {
	Blob ocispec.Descriptor
	// Content is read from any place and more than once, and must not change.
	Content io.ReaderAt
	// Progress is called with the number of bytes that were sent, from one goroutine at a time, if it is not nil. It goes back
	// when the upload starts again.
	Progress func(sent int64)
	// NoProgress is how long the registry may take nothing.
	NoProgress time.Duration
	// Pause waits before an attempt is repeated.
	Pause func(ctx context.Context, attempt int) error
}

// Upload is the way of one blob into a repository: in one piece, and after a broken connection from where the registry says
// that it is, or from the start. It goes on at another endpoint of the same registry. It is for one goroutine.
type Upload struct {
	o Options

	session *url.URL
	begun   bool  // the registry has taken an upload once
	offset  int64 // what the registry has
	chunk   int64 // 0: one piece
	resumed bool
	whole   bool // taking it up has failed

	mu      sync.Mutex // guards what the transport touches
	body    *body
	readErr error // of content
}

// New prepares an upload.
func New(o Options) *Upload { return &Upload{o: o} }

// Run uploads to one endpoint, or has the blob mounted from one of the other repositories of the registry.
func (u *Upload) Run(ctx context.Context, e Target, from []string) (mounted bool, err error) {
	for _, repo := range from {
		mounted, err := u.begin(ctx, e, repo)
		if ctx.Err() != nil || errors.Is(failure.KindOf(err), failure.ErrUnavailable) {
			return false, err
		}
		if mounted {
			return true, nil
		}
		if u.session != nil {
			break // the registry would rather have the bytes
		}
	}
	for attempt := 0; ; attempt++ {
		before := u.offset
		ctx := keyring.Once(ctx)
		if err = u.try(ctx, e); err == nil {
			return false, nil
		}
		if ctx.Err() != nil || u.ReadError() != nil || attempt >= hosts.MaxRetries && u.offset <= before || !u.again(err) {
			return false, err
		}
		if u.offset > before {
			attempt = 0
		}
		if err := u.o.Pause(ctx, attempt); err != nil {
			return false, err
		}
		u.locate(ctx, e)
	}
}

// again tells whether an upload that failed may work the next time, and changes the way if that is what it takes.
func (u *Upload) again(err error) bool {
	var s *failure.Status
	unavailable := errors.Is(failure.KindOf(err), failure.ErrUnavailable)
	switch {
	case errors.As(err, &s) && s.Code == http.StatusRequestEntityTooLarge && u.chunk == 0:
		u.chunk, u.session = chunkSize, nil
		return true
	case errors.As(err, &s) && u.resumed && s.Code/100 == 4 && s.Code != http.StatusUnauthorized && s.Code != http.StatusForbidden:
		u.whole, u.session = true, nil
		return true
	case errors.As(err, &s) && u.session != nil && (s.Code == http.StatusNotFound || s.Code == http.StatusRequestedRangeNotSatisfiable):
		u.session = nil // the registry has forgotten the upload, or is elsewhere in it
		return true
	case unavailable && !u.begun:
		return s != nil || hosts.WorthRetrying(nil, err)
	}
	return unavailable
}

// try sends what the registry does not have.
func (u *Upload) try(ctx context.Context, e Target) error {
	if u.session == nil {
		if _, err := u.begin(ctx, e, ""); err != nil {
			return err
		}
	}
	if u.offset == 0 && u.chunk == 0 {
		return u.send(ctx, e, http.MethodPut, u.o.Blob.Size)
	}
	size := u.chunk
	if size == 0 {
		size = u.o.Blob.Size
	}
	for u.offset < u.o.Blob.Size {
		if err := u.send(ctx, e, http.MethodPatch, min(size, u.o.Blob.Size-u.offset)); err != nil {
			return err
		}
	}
	return u.send(ctx, e, http.MethodPut, 0)
}

// begin starts an upload, or has the blob mounted from another repository.
func (u *Upload) begin(ctx context.Context, e Target, from string) (mounted bool, err error) {
	u.session, u.offset, u.resumed = nil, 0, false
	query, scoped := "", e.Scoped(ctx)
	if from != "" {
		query = url.Values{"mount": {u.o.Blob.Digest.String()}, "from": {from}}.Encode()
		scoped = e.Scoped(ctx, from)
	}
	to := *e.Uploads
	to.RawQuery = query
	req, err := http.NewRequestWithContext(scoped, http.MethodPost, to.String(), http.NoBody)
	if err != nil {
		return false, err
	}
	resp, err := e.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return from != "", nil
	}
	u.begun = true
	if u.session, err = e.location(resp); err != nil {
		return false, err
	}
	least, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64)
	if err == nil && u.chunk > 0 && least > u.chunk && least <= maxChunk {
		u.chunk = least
	}
	return false, nil
}

// locate asks how far the upload has come. Without a good answer it starts again.
func (u *Upload) locate(ctx context.Context, e Target) {
	if u.session == nil {
		return
	}
	session := u.session
	if u.session = nil; u.whole {
		return
	}
	req, err := http.NewRequestWithContext(e.Scoped(ctx), http.MethodGet, session.String(), http.NoBody)
	if err != nil {
		return
	}
	resp, err := e.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	_, end, ok := strings.Cut(resp.Header.Get("Range"), "-")
	last, err := strconv.ParseInt(end, 10, 64)
	// "0-0" is one byte, and what some registries say of none.
	if !ok || err != nil || last <= 0 || last >= u.o.Blob.Size {
		return
	}
	if u.session = session; resp.Header.Get("Location") != "" {
		if to, err := e.location(resp); err == nil {
			u.session = to
		}
	}
	u.offset, u.resumed = last+1, true
}

// send makes a request with the next size bytes. PUT ends the upload.
func (u *Upload) send(ctx context.Context, e Target, method string, size int64) error {
	ctx, cancel := context.WithCancelCause(e.Scoped(ctx))
	defer cancel(nil)
	to := *u.session
	if method == http.MethodPut {
		q := to.Query()
		q.Set("digest", u.o.Blob.Digest.String())
		to.RawQuery = q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, to.String(), http.NoBody)
	if err != nil {
		return err
	}
	req.ContentLength = size
	if size > 0 {
		at, stalled := u.offset, func() {
			cancel(fmt.Errorf("nothing was taken for %v: %w", u.o.NoProgress, failure.ErrStalled))
		}
		req.GetBody = func() (io.ReadCloser, error) { return u.open(at, size, stalled), nil }
		req.Body = u.open(at, size, stalled)
		defer u.leave()
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if method == http.MethodPatch {
		req.Header.Set("Content-Range", fmt.Sprintf("%d-%d", u.offset, u.offset+size-1))
	}
	resp, err := e.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, failure.ErrStalled) {
			err = cause
		}
		return err
	}
	defer resp.Body.Close()
	if method == http.MethodPut {
		return nil
	}
	u.offset += size
	u.session, err = e.location(resp)
	return err
}

// open begins the body of a request, in place of the one before, which the transport may still hold.
func (u *Upload) open(at, size int64, stalled func()) io.ReadCloser {
	b := &body{upload: u, section: io.NewSectionReader(u.o.Content, at, size), at: at, end: at + size}
	b.timer = time.AfterFunc(u.o.NoProgress, stalled)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.body != nil {
		u.body.timer.Stop()
	}
	u.body = b
	return b
}

// leave ends the body of a request that has its answer.
func (u *Upload) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.body.timer.Stop()
	u.body = nil
}

// ReadError is what went wrong with the content, which is not the registry's fault.
func (u *Upload) ReadError() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.readErr
}

// body counts, and gives up when nobody reads.
type body struct {
	upload  *Upload
	section *io.SectionReader
	at, end int64
	timer   *time.Timer
}

// Read implements io.Reader.
func (b *body) Read(buf []byte) (int, error) {
	n, err := b.section.Read(buf)
	u := b.upload
	u.mu.Lock()
	defer u.mu.Unlock()
	if b.at += int64(n); b.at < b.end && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if u.body != b {
		return n, err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		u.readErr = err
	}
	b.timer.Stop() // at the end: from here on the transport waits for the answer, with its own limit
	if err == nil && b.at < b.end {
		b.timer.Reset(u.o.NoProgress)
	}
	if n > 0 && u.o.Progress != nil {
		u.o.Progress(b.at)
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error { return nil }
