// Package sources has all pulls that wait for the same blob take part in fetching it, so that none depends on the registry of
// another. A blob's bytes are the same wherever they come from: its digest is checked at the end.
//
// The source of the pull that came first is asked. What it does not send, because it fails, or is slow while another one is
// there to ask, another source sends from there on. Each source is asked with the credentials of its own pull, which has found
// the blob's digest in a manifest that its registry let it read.
package sources

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/download"
)

const (
	defaultPatience = 10 * time.Second
	// enough is how many bytes one connection must bring in the time of patience so as not to be called slow.
	enough = 64 << 10
	// faster is how many times as fast a source must have been that is gone back to.
	faster = 2
)

// Source is where a blob can be had.
type Source interface {
	// Part asks for length bytes of a blob from the offset on, see download.Origin.
	Part(ctx context.Context, d ocispec.Descriptor, offset, length int64) (download.Part, error)
	// CanTryElsewhere tells whether it has an endpoint that has not failed yet.
	CanTryElsewhere() bool
	// Site tells sources apart of which one may be fast where the other is slow.
	Site() string
}

// Table has the sources of the blobs that are wanted. The zero value is ready. Its methods may be called at the same time.
type Table struct {
	// Patience is how long a slow source is waited for while there is another; 0 is 10 seconds.
	Patience time.Duration

	mu    sync.Mutex
	blobs map[digest.Digest]*Sources
}

// Sources are those of one blob. Its methods may be called at the same time.
type Sources struct {
	patience time.Duration

	mu    sync.Mutex // never held across a call to a source
	list  []*listed
	users int // guarded by Table.mu
	parts map[*part]struct{}
}

// listed is a source that a pull has brought. All is guarded by the lock.
type listed struct {
	Source
	gone   bool  // its pull waits no more
	failed bool  // it did not send what it was asked for
	rate   int64 // what it sent in the time of patience when it was left for being slow; -1: it was not
}

// Join adds a source, until leave is called once. Whoever joins before that gets the same sources.
func (t *Table) Join(d digest.Digest, from Source) (all *Sources, leave func()) {
	t.mu.Lock()
	all = t.blobs[d]
	if all == nil {
		all = &Sources{patience: cmp.Or(t.Patience, defaultPatience), parts: map[*part]struct{}{}}
		if t.blobs == nil {
			t.blobs = map[digest.Digest]*Sources{}
		}
		t.blobs[d] = all
	}
	all.users++
	t.mu.Unlock()
	mine := &listed{Source: from, rate: -1}
	all.add(mine)
	return all, func() {
		all.mu.Lock()
		mine.gone = true
		all.mu.Unlock()
		t.mu.Lock()
		defer t.mu.Unlock()
		if all.users--; all.users == 0 {
			delete(t.blobs, d)
		}
	}
}

// add has parts that wait for a slow source go on with a new one.
func (s *Sources) add(l *listed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, l)
	for p := range s.parts {
		s.hurry(p)
	}
}

// CanTryElsewhere tells whether opening the blob again after damage may help.
func (s *Sources) CanTryElsewhere() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.list, (*listed).good)
}

// next is the source to ask now, nil if tried has all. Those that have not failed come first, then those whose pull still waits,
// then those that were not slow, then the fastest; of equal ones the one that came first.
func (s *Sources) next(tried map[*listed]bool) *listed {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *listed
	for _, l := range s.list {
		if !tried[l] && (best == nil || cmp.Or(cmp.Compare(l.demerit(), best.demerit()), cmp.Compare(best.rate, l.rate)) < 0) {
			best = l
		}
	}
	return best
}

// good needs the lock.
func (l *listed) good() bool { return !l.failed && l.CanTryElsewhere() }

// demerit needs the lock.
func (l *listed) demerit() int {
	n := 0
	if !l.good() {
		n += 4
	}
	if l.gone {
		n += 2
	}
	if l.rate >= 0 {
		n++
	}
	return n
}

// fail notes that a source did not send what it was asked for.
func (s *Sources) fail(l *listed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.failed = true
}

// hurry ends the wait of a part for a slow source if there is one that may be faster. It needs the lock.
func (s *Sources) hurry(p *part) {
	if p.slow && slices.ContainsFunc(s.list, func(l *listed) bool { return p.mayBeFaster(l) }) {
		p.at.rate = p.rate
		p.cancel(errSlow)
	}
}

// errSlow ends a request to a source that is slow.
var errSlow = errors.New("another source may be faster")
