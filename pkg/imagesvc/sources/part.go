package sources

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/registry/failure"
)

// part reads bytes of a blob from one source after the other.
type part struct {
	all  *Sources
	ctx  context.Context // a reader has no other way to get one
	desc ocispec.Descriptor

	start, offset, end int64 // offset is that of the next byte
	inner              download.Part
	last               download.Part    // what inner is, or was
	began              int64            // where last began
	tried              map[*listed]bool // that failed
	err                error            // of all of them
	left               []download.Part  // that sent something before inner

	timer  *time.Timer   // for what is left of patience
	waited time.Duration // since enough came

	// Guarded by all.mu.
	at     *listed                 // who is asked
	cancel context.CancelCauseFunc // of that request
	due    time.Time               // when the call under way has taken too long; zero: there is none
	got    int64                   // in the time of waited
	slow   bool                    // not enough came in the time of patience
	rate   int64                   // what came, when it is slow
}

// Part is the download.Origin of a blob.
func (s *Sources) Part(ctx context.Context, d ocispec.Descriptor, offset, length int64) (download.Part, error) {
	p := &part{all: s, ctx: ctx, desc: d, start: offset, offset: offset, end: offset + length, tried: map[*listed]bool{}}
	p.timer = time.AfterFunc(s.patience, p.late)
	p.timer.Stop()
	s.mu.Lock()
	s.parts[p] = struct{}{}
	s.mu.Unlock()
	if err := p.open(true); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// open asks the sources in order for the rest, until one has an answer.
func (p *part) open(first bool) error {
	for {
		from := p.all.next(p.tried)
		if from == nil {
			return p.err
		}
		err := p.ask(from, first)
		if err == nil {
			return nil
		}
		if !p.goOn(err) {
			return err
		}
	}
}

// ask asks one source.
func (p *part) ask(from *listed, first bool) error {
	ctx, cancel := context.WithCancelCause(p.ctx)
	s := p.all
	s.mu.Lock()
	p.at, p.cancel, p.slow, p.got = from, cancel, false, 0
	s.mu.Unlock()
	p.waited = 0
	var inner download.Part
	err := p.timed(func() (int, error) {
		var err error
		inner, err = from.Part(ctx, p.desc, p.offset, p.end-p.offset)
		return 0, err
	})
	if err != nil {
		return p.because(ctx, err)
	}
	p.inner = &asked{Part: inner, ctx: ctx}
	p.left = p.sent()
	p.last, p.began = inner, p.offset
	start, end := inner.Span()
	if first {
		p.start, p.offset, p.end, p.began = start, start, end, start
		return nil
	}
	if start > p.offset || end < p.end {
		return fmt.Errorf("bytes %d to %d came, %d to %d were asked for", start, end, p.offset, p.end)
	}
	for skip := p.offset - start; skip > 0; { // it has sent the whole blob
		n, err := p.read(make([]byte, min(skip, 128<<10)))
		if skip -= int64(n); err != nil {
			return err
		}
	}
	return nil
}

// asked is a part with the context of its request.
type asked struct {
	download.Part
	ctx context.Context
}

// because is why a request ended: what it says itself, or that it was too slow.
func (p *part) because(ctx context.Context, err error) error {
	if p.ctx.Err() == nil && errors.Is(context.Cause(ctx), errSlow) {
		return errSlow
	}
	return err
}

// goOn tells whether an error leaves other sources to ask, and leaves the one that it is of.
func (p *part) goOn(err error) bool {
	p.drop()
	if p.ctx.Err() != nil {
		return false
	}
	if errors.Is(err, errSlow) {
		return true
	}
	if p.err == nil {
		p.err = err
	} else {
		p.err = fmt.Errorf("%w; %w", p.err, err)
	}
	if !failure.IsDamage(err) || !p.at.CanTryElsewhere() { // each damage leaves one endpoint less
		p.tried[p.at] = true
		p.all.fail(p.at)
	}
	return true
}

// Read implements download.Part.
func (p *part) Read(b []byte) (int, error) {
	if p.offset == p.end && (p.end < p.desc.Size || p.inner == nil) {
		return 0, io.EOF
	}
	for {
		if p.inner == nil {
			if err := p.open(false); err != nil {
				return 0, err
			}
		}
		limited := b
		if p.end < p.desc.Size { // else more than the end is for the verifying reader to find
			limited = b[:min(int64(len(b)), p.end-p.offset)]
		}
		n, err := p.read(limited)
		p.offset += int64(n)
		if err == nil || errors.Is(err, io.EOF) {
			return n, err
		}
		if !p.goOn(err) {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// read reads from the source that is asked.
func (p *part) read(b []byte) (int, error) {
	inner := p.inner.(*asked)
	var n int
	err := p.timed(func() (int, error) {
		var err error
		n, err = inner.Read(b)
		return n, err
	})
	if err != nil && !errors.Is(err, io.EOF) {
		err = p.because(inner.ctx, err)
	}
	return n, err
}

// timed notes how long a call takes and what it brings.
func (p *part) timed(call func() (int, error)) error {
	began, left := time.Now(), p.all.patience-p.waited
	p.all.mu.Lock()
	p.due = began.Add(left)
	p.all.mu.Unlock()
	p.timer.Reset(left)
	n, err := call()
	p.timer.Stop()
	p.waited += time.Since(began)
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	p.due = time.Time{}
	if p.got += int64(n); p.got >= enough {
		p.waited, p.got, p.slow = 0, 0, false
	}
	return err
}

// late is called when too little has come in the time of patience, or has just come.
func (p *part) late() {
	s := p.all
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.due.IsZero() || time.Now().Before(p.due) {
		return
	}
	p.slow, p.rate = true, p.got
	s.hurry(p)
}

// mayBeFaster tells whether a source is worth leaving for the one that is asked, which is slow. It needs the lock.
func (p *part) mayBeFaster(l *listed) bool {
	return p.all.good(l) && !l.gone && l.Site() != p.at.Site() && (l.rate < 0 || l.rate > faster*p.rate)
}

// Span implements download.Part.
func (p *part) Span() (start, end int64) { return p.start, p.end }

// sent are the parts that bytes came from.
func (p *part) sent() []download.Part {
	if p.last != nil && (p.offset > p.began || p.start == p.end) {
		return append(p.left, p.last)
	}
	return p.left
}

// Senders implements download.Part.
func (p *part) Senders() []string {
	var all []string
	for _, sent := range p.sent() {
		all = append(all, sent.Senders()...)
	}
	return all
}

// Blame implements download.Part.
func (p *part) Blame(sure bool) {
	for _, sent := range p.sent() {
		sent.Blame(sure)
	}
	if sure {
		p.all.distrust(p.Senders()...)
	} else {
		p.all.distrust()
	}
}

// drop ends the request under way.
func (p *part) drop() {
	p.all.mu.Lock()
	cancel := p.cancel
	p.all.mu.Unlock()
	if p.inner != nil {
		p.inner.Close()
		p.inner = nil
	}
	if cancel != nil {
		cancel(nil)
	}
}

// Close implements download.Part.
func (p *part) Close() error {
	p.timer.Stop()
	p.drop()
	p.all.mu.Lock()
	defer p.all.mu.Unlock()
	delete(p.all.parts, p)
	return nil
}
