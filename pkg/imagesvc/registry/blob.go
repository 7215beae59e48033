package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/verify"
)

const (
	// maxResumes is how often a body that was cut off is taken up again without progress in between.
	maxResumes = 5
	// progress is how many bytes make up for a cut.
	progress = 8 << 20
)

// Blob is the content of a descriptor while it is fetched. Read ends with io.EOF only after content of the right size
// and digest; its other errors are those of the package.
type Blob struct {
	*verify.Reader
	source *source
}

// Blob fetches content. The caller closes it. A body that is cut off is taken up where it ended.
func (r *Repository) Blob(ctx context.Context, d ocispec.Descriptor) (*Blob, error) {
	if err := verify.CheckDigest(d.Digest); err != nil {
		return nil, fmt.Errorf("fetch blob: %w: %w", ErrInvalid, err)
	}
	if d.Size < 0 {
		return nil, fmt.Errorf("fetch blob %s: %w: size %d", d.Digest, ErrInvalid, d.Size)
	}
	s := &source{ctx: ctx, repo: r, desc: d}
	if err := s.open(); err != nil {
		return nil, err
	}
	return &Blob{verify.NewReader(s, d.Digest, d.Size), s}, nil
}

// Read implements io.Reader.
func (b *Blob) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil {
		err = b.explain(err)
	}
	return n, err
}

// Err is like verify.Reader's: nil, io.EOF after verified content, or what was wrong.
func (b *Blob) Err() error {
	if err := b.Reader.Err(); err != nil {
		return b.explain(err)
	}
	return nil
}

// Drain reads to the end and returns nil if the content was what it should be.
func (b *Blob) Drain() error {
	_, err := io.Copy(io.Discard, b)
	return err
}

// explain says where wrong content came from, and has the rest of the pull go elsewhere.
func (b *Blob) explain(err error) error {
	var known *failure
	if errors.Is(err, io.EOF) || errors.As(err, &known) || b.source.ctx.Err() != nil {
		return err
	}
	e := b.source.from
	kind := kindOf(err)
	if isDamage(kind) {
		e.avoid.Store(true)
	}
	return b.source.repo.failed(b.source.what(), []attempt{{e, err, kind}})
}

// Close ends the fetch.
func (b *Blob) Close() error { return b.source.drop() }

// source reads a blob's bytes over as many connections as it takes. A reader has no other way to get a context.
type source struct {
	ctx    context.Context
	repo   *Repository
	desc   ocispec.Descriptor
	from   *endpoint
	body   io.ReadCloser
	offset int64
	cut    error // why body is nil
	cutAt  int64
	cuts   int
}

func (s *source) what() string {
	return fmt.Sprintf("fetch blob %s of %s", s.desc.Digest, s.repo.ref)
}

func (s *source) drop() error {
	if s.body == nil {
		return nil
	}
	err := s.body.Close()
	s.body = nil
	return err
}

func (s *source) Read(p []byte) (int, error) {
	for {
		if s.body == nil {
			if err := s.resume(); err != nil {
				return 0, err
			}
		}
		n, err := s.body.Read(p)
		s.offset += int64(n)
		// A body that ends in order before its size is all the server has: the verifying reader says so.
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, ErrStalled) || s.ctx.Err() != nil {
			return n, err
		}
		s.cut = errors.Join(err, s.drop())
		if n > 0 {
			return n, nil
		}
	}
}

// resume waits and then asks for the rest of the body.
func (s *source) resume() error {
	if s.offset-s.cutAt >= progress {
		s.cuts = 0
	}
	s.cutAt = s.offset
	if s.cuts++; s.cuts > maxResumes {
		return fmt.Errorf("connection lost %d times, last after %d of %d bytes: %w: %w", s.cuts, s.offset, s.desc.Size, s.cut, ErrTruncated)
	}
	timer := time.NewTimer(min(s.repo.config.Backoff<<(s.cuts-1), maxBackoff))
	defer timer.Stop()
	select {
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case <-timer.C:
	}
	return s.open()
}

// open asks for the body from the offset on.
func (s *source) open() error {
	return s.repo.each(s.ctx, s.what(), func(e *endpoint) error {
		header := http.Header{}
		if s.offset > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-", s.offset))
		}
		resp, err := s.repo.send(s.ctx, e, http.MethodGet, "blobs/"+s.desc.Digest.String(), header) //nolint:bodyclose // by drop
		if err == nil {
			err = s.position(resp)
		}
		if err != nil {
			return err
		}
		s.body, s.from = resp.Body, e
		return nil
	})
}

// position checks that the response is the body from the offset on, or skips what was read before.
func (s *source) position(resp *http.Response) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, resp.Body.Close())
		}
	}()
	whole := s.desc.Size
	if resp.StatusCode == http.StatusPartialContent {
		got := resp.Header.Get("Content-Range") // RFC 9110, 14.4
		if s.offset == 0 || !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", s.offset)) {
			return fmt.Errorf("server sends range %q, want one from %d", got, s.offset)
		}
		whole -= s.offset
	}
	switch n := resp.ContentLength; {
	case n >= 0 && n < whole:
		return fmt.Errorf("server sends %d bytes, the manifest says %d: %w", n, whole, ErrTruncated)
	case n > whole:
		return fmt.Errorf("server sends %d bytes, the manifest says %d: %w", n, whole, ErrDigest)
	}
	if resp.StatusCode == http.StatusPartialContent || s.offset == 0 {
		return nil
	}
	_, err = io.CopyN(io.Discard, resp.Body, s.offset)
	return err
}

// watched is a body that gives up when nothing comes for some time. Time in which nobody reads does not count.
type watched struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
}

func watch(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, limit time.Duration) io.ReadCloser {
	w := &watched{ctx: ctx, cancel: cancel, body: body, limit: limit}
	w.timer = time.AfterFunc(limit, func() { cancel(fmt.Errorf("nothing came for %v: %w", limit, ErrStalled)) })
	w.timer.Stop()
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.body.Read(p)
	w.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && w.ctx.Err() != nil {
		err = context.Cause(w.ctx)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.body.Close()
}
