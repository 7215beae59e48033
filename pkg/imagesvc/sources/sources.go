// Package sources has all pulls that wait for the same blob take part in fetching it, so that none depends on the registry of
// another. A blob's bytes are the same wherever they come from: its digest is checked at the end.
//
// The source of the pull that came first is asked. What it does not send, because it fails, or is slow while another one is
// there to ask, another source sends from there on. Each source is asked with the credentials of its own pull, which has found
// the blob's digest in a manifest that its registry let it read.
//
// A blob that turns out wrong is fetched again, from one server at a time, so that no wrong byte of one can be among the right ones
// of another: who sent all of a blob that is wrong is not asked for it again while there are others. Each such fetch leaves one
// server less; N servers are asked for the whole blob N+1 times at most.
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
	// Alone splits it into its servers, in the order in which to ask them.
	Alone() []Server
}

// Server is a source that asks one server only.
type Server struct {
	Source
	// Name is what it is called by download.Part.
	Name string
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
	wrong map[string]bool // the servers that send wrong bytes; once not nil, list is of servers, in the order in which to ask them
	users int             // guarded by Table.mu
	parts map[*part]struct{}
}

// listed is a source that a pull has brought. All is guarded by the lock.
type listed struct {
	Source
	server string // the name of the only one that it asks; "": it is as its pull brought it
	gone   bool   // its pull waits no more
	failed bool   // it did not send what it was asked for
	rate   int64  // what it sent in the time of patience when it was left for being slow; -1: it was not
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
	if s.wrong != nil {
		s.list = append(s.list, l.alone()...)
		return
	}
	s.list = append(s.list, l)
	for p := range s.parts {
		s.hurry(p)
	}
}

// CanTryElsewhere tells whether opening the blob again after damage may help.
func (s *Sources) CanTryElsewhere() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.list, s.good)
}

// distrust has the blob, which turned out wrong, fetched from one server at a time, and no more from those that are given.
func (s *Sources) distrust(wrong ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wrong == nil {
		slices.SortStableFunc(s.list, s.compare)
		var all []*listed
		for _, l := range s.list {
			all = append(all, l.alone()...)
		}
		s.list, s.wrong = all, map[string]bool{}
	}
	for _, name := range wrong {
		s.wrong[name] = true
	}
}

// alone are the servers of a source.
func (l *listed) alone() []*listed {
	var all []*listed
	for _, one := range l.Alone() {
		all = append(all, &listed{Source: one.Source, server: one.Name, rate: -1})
	}
	return all
}

// next is the source to ask now, nil if tried has all. Those that have not failed come first, then those whose pull still waits,
// then those that were not slow, then the fastest; of equal ones the one that came first. Who sends wrong bytes is asked only if
// there is nobody else at all.
func (s *Sources) next(tried map[*listed]bool) *listed {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *listed
	for _, l := range s.list {
		if !tried[l] && (best == nil || s.compare(l, best) < 0) {
			best = l
		}
	}
	right := func(l *listed) bool { return !s.wrong[l.server] }
	if best != nil && !right(best) && slices.ContainsFunc(s.list, right) {
		return nil
	}
	return best
}

// good needs the lock.
func (s *Sources) good(l *listed) bool {
	if s.wrong != nil { // what a server did before the blob turned out wrong does not count
		return !l.failed && !s.wrong[l.server]
	}
	return !l.failed && l.CanTryElsewhere()
}

// compare is negative if a is to be asked before b. It needs the lock.
func (s *Sources) compare(a, b *listed) int {
	return cmp.Or(cmp.Compare(s.demerit(a), s.demerit(b)), cmp.Compare(b.rate, a.rate))
}

// demerit needs the lock.
func (s *Sources) demerit(l *listed) int {
	n := 0
	if s.wrong[l.server] {
		n += 8
	}
	if !s.good(l) {
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

// hurry ends the wait of a part for a slow source if there is one that may be faster, and each may be trusted. It needs the lock.
func (s *Sources) hurry(p *part) {
	if p.slow && s.wrong == nil && slices.ContainsFunc(s.list, func(l *listed) bool { return p.mayBeFaster(l) }) {
		p.at.rate = p.rate
		p.cancel(errSlow)
	}
}

// errSlow ends a request to a source that is slow.
var errSlow = errors.New("another source may be faster")
