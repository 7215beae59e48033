package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry/failure"
	"criserver/pkg/imagesvc/verify"
)

const (
	// maxResumes is how often a body that was cut off is taken up again without progress in between.
	maxResumes = 5
	// patience is how often the same endpoint may cut it off at the same place.
	patience = 2
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
	s, err := r.source(ctx, d, 0, d.Size)
	if err != nil {
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
	s := b.source
	var known *failure.Error
	if b.Several() && errors.Is(err, ErrDigest) && !errors.As(err, &known) {
		s.suspect(false)
		var attempts []attempt
		for _, e := range s.sent {
			attempts = append(attempts, attempt{e, err, ErrDigest})
		}
		return s.repo.failed(s.what(), attempts)
	}
	err = s.explain(err)
	s.blame(failure.KindOf(err))
	return err
}

// Several tells whether what has been read came from more than one endpoint: if it is wrong, it does not tell whose fault that is.
func (b *Blob) Several() bool { return len(b.source.sent) > 1 }

// Close ends the fetch.
func (b *Blob) Close() error { return b.source.drop() }

// Part is some of a blob's bytes. They are not verified: who puts parts together does that.
type Part struct{ source *source }

// Range fetches length bytes of a blob from the offset on. A server that knows no ranges sends the whole blob instead:
// Span tells. The caller closes the part; one that is cut off is taken up where it ended.
func (r *Repository) Range(ctx context.Context, d ocispec.Descriptor, offset, length int64) (*Part, error) {
	s, err := r.source(ctx, d, offset, offset+length)
	if err != nil {
		return nil, err
	}
	return &Part{s}, nil
}

// Read implements io.Reader. It returns io.EOF after the last byte only.
func (p *Part) Read(b []byte) (int, error) {
	s := p.source
	n, err := s.Read(b)
	if errors.Is(err, io.EOF) && s.offset < s.end {
		err = fmt.Errorf("content ends after %d of %d bytes: %w", s.offset, s.end, ErrTruncated)
	}
	if err != nil {
		err = s.explain(err)
		s.blame(failure.KindOf(err))
	}
	return n, err
}

// Span is where in the blob the part begins, and the offset behind its last byte.
func (p *Part) Span() (start, end int64) { return p.source.start, p.source.end }

// Senders are the names of the servers that sent what has been read. An empty part is of the one that was asked.
func (p *Part) Senders() []string {
	var names []string
	for _, e := range p.source.senders() {
		names = append(names, e.name())
	}
	return names
}

// Blame has the rest of the pull go elsewhere than to the senders, because the blob turned out wrong. If that is not sure to be
// their fault, mirrors are suspected, and the registry itself is not.
func (p *Part) Blame(sure bool) { p.source.suspect(sure) }

// Close ends the fetch.
func (p *Part) Close() error { return p.source.drop() }

// source reads a blob's bytes over as many connections as it takes. A reader has no other way to get a context.
type source struct {
	ctx    context.Context
	repo   *Repository
	desc   ocispec.Descriptor
	from   *endpoint
	sent   []*endpoint // who sent what has been read
	body   io.ReadCloser
	start  int64
	offset int64 // of the next byte
	end    int64
	opened bool  // once
	cut    error // why body is nil
	cutAt  int64
	cuts   int
}

// source opens the bytes of a blob from one offset to another.
func (r *Repository) source(ctx context.Context, d ocispec.Descriptor, start, end int64) (*source, error) {
	if err := verify.CheckDigest(d.Digest); err != nil {
		return nil, fmt.Errorf("fetch blob: %w: %w", ErrInvalid, err)
	}
	if d.Size < 0 || start < 0 || end < start || end > d.Size {
		return nil, fmt.Errorf("fetch blob %s: %w: bytes %d to %d of %d", d.Digest, ErrInvalid, start, end, d.Size)
	}
	s := &source{ctx: ctx, repo: r, desc: d, start: start, offset: start, end: end}
	return s, s.open()
}

func (s *source) what() string {
	return fmt.Sprintf("fetch blob %s of %s", s.desc.Digest, s.repo.ref)
}

// explain says where an error came from.
func (s *source) explain(err error) error {
	var known *failure.Error
	if errors.Is(err, io.EOF) || errors.As(err, &known) || s.ctx.Err() != nil {
		return err
	}
	return s.repo.failed(s.what(), []attempt{{s.from, err, failure.KindOf(err)}})
}

// blame has the rest of the pull go elsewhere if what came cannot be used, and other pulls for a while if nothing came.
func (s *source) blame(kind error) {
	if failure.IsDamage(kind) {
		s.from.avoid.Store(true)
	}
	if errors.Is(kind, ErrStalled) {
		s.repo.health.Failed(s.from.identity)
	}
}

func (s *source) senders() []*endpoint {
	if s.start == s.end {
		return []*endpoint{s.from}
	}
	return s.sent
}

// suspect has the rest of the pull go elsewhere than to the senders, or to those of them that are mirrors.
func (s *source) suspect(sure bool) {
	for _, e := range s.senders() {
		if sure || e.mirror() {
			e.avoid.Store(true)
		}
	}
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
	if s.end < s.desc.Size { // else more than the end is for the verifying reader to find
		if s.offset == s.end {
			return 0, io.EOF
		}
		p = p[:min(int64(len(p)), s.end-s.offset)]
	}
	for {
		if s.body == nil {
			if err := s.resume(); err != nil {
				return 0, err
			}
		}
		n, err := s.body.Read(p)
		s.offset += int64(n)
		if n > 0 && !slices.Contains(s.sent, s.from) {
			s.sent = append(s.sent, s.from)
		}
		// A body that ends in order before its size is all the server has: who verifies it says so.
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
	if s.cuts > patience {
		s.from.avoid.Store(true) // if there is another, it has its turn
	}
	if err := s.repo.config.pause(s.ctx, s.cuts-1); err != nil {
		return err
	}
	return s.open()
}

// errRange says that a server does not answer requests for ranges as it should.
var errRange = errors.New("not the range that was asked for")

// open asks for the body from the offset on. A server that cannot do ranges right is asked for the whole blob, for the rest of
// the pull.
func (s *source) open() error {
	return s.repo.each(s.ctx, s.what(), func(e *endpoint) error {
		err := s.ask(e, !e.noRanges.Load())
		if errors.Is(err, errRange) && s.ctx.Err() == nil {
			e.noRanges.Store(true)
			err = s.ask(e, false)
		}
		return err
	})
}

// ask asks one endpoint.
func (s *source) ask(e *endpoint, ranged bool) error {
	// Compressed on the way, a blob would not have its digest any more.
	header := http.Header{"Accept-Encoding": {"identity"}}
	ranged = ranged && (s.offset > 0 || s.end < s.desc.Size)
	switch {
	case ranged && s.end < s.desc.Size:
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.offset, s.end-1))
	case ranged:
		header.Set("Range", fmt.Sprintf("bytes=%d-", s.offset))
	}
	resp, err := s.repo.send(s.ctx, e, http.MethodGet, "blobs/"+s.desc.Digest.String(), header) //nolint:bodyclose // by drop
	var status *failure.Status
	if ranged && errors.As(err, &status) && status.Code == http.StatusRequestedRangeNotSatisfiable {
		return fmt.Errorf("%w: %w", err, errRange)
	}
	if err == nil {
		err = s.position(resp)
	}
	if err != nil {
		return err
	}
	s.body, s.from, s.opened = resp.Body, e, true
	return nil
}

// position checks that the response is the body from the offset on. A server that sends the whole blob instead makes
// the source begin at its beginning, when it is opened; later what was read before is skipped.
func (s *source) position(resp *http.Response) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, resp.Body.Close())
		}
	}()
	offset, end := s.offset, s.end
	partial := resp.StatusCode == http.StatusPartialContent
	if !partial {
		offset, end = 0, s.desc.Size
	}
	if err := s.check(resp, offset, end); err != nil {
		return err
	}
	if partial {
		return nil
	}
	if !s.opened {
		s.start, s.offset, s.end = 0, 0, end
		return nil
	}
	_, err = io.CopyN(io.Discard, resp.Body, s.offset)
	return err
}

// check tells what is wrong with a response that should have the bytes from one offset to another. What is wrong with a range
// may be right with the whole.
func (s *source) check(resp *http.Response, offset, end int64) error {
	truncated, wrong, what := ErrTruncated, ErrDigest, "the manifest says"
	if resp.StatusCode == http.StatusPartialContent {
		truncated, wrong = fmt.Errorf("%w: %w", errRange, ErrTruncated), fmt.Errorf("%w: %w", errRange, ErrDigest)
		what = "asked for were"
		got := resp.Header.Get("Content-Range") // RFC 9110, 14.4
		if !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", offset)) {
			return fmt.Errorf("server sends range %q, want one from %d: %w", got, offset, wrong)
		}
	}
	n, encoding := resp.ContentLength, resp.Header.Get("Content-Encoding")
	switch {
	case n < 0 && encoding != "" && !strings.EqualFold(encoding, "identity"):
		// With a length it may be what the blob itself is: some servers say so of gzip files.
		return fmt.Errorf("server sends the blob in the encoding %q, which was not asked for: %w", encoding, wrong)
	case n >= 0 && n < end-offset:
		return fmt.Errorf("server sends %d bytes, %s %d: %w", n, what, end-offset, truncated)
	case n > end-offset:
		return fmt.Errorf("server sends %d bytes, %s %d: %w", n, what, end-offset, wrong)
	}
	return nil
}
