// Package lease keeps what is in use, or about to be, from being deleted.
package lease

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Leases are of layers and blobs. The zero value has none. Its methods may be called at the same time.
type Leases struct {
	mu   sync.Mutex
	held map[digest.Digest]int
	// deleting are those that are being deleted just now; a channel is closed when that is done.
	deleting map[digest.Digest]chan struct{}
}

// Hold keeps Delete off some digests until release is called, whether they exist or not. Those that are being deleted at
// this moment are waited for.
func (l *Leases) Hold(ctx context.Context, digests []digest.Digest) (release func(), err error) {
	release = func() { l.release(digests) }
	for _, done := range l.take(digests) {
		select {
		case <-done:
		case <-ctx.Done():
			release()
			return nil, context.Cause(ctx)
		}
	}
	return release, nil
}

// take returns the ends of the deletions that are under way.
func (l *Leases) take(digests []digest.Digest) []chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[digest.Digest]int{}
	}
	var busy []chan struct{}
	for _, d := range digests {
		l.held[d]++
		if done, ok := l.deleting[d]; ok {
			busy = append(busy, done)
		}
	}
	return busy
}

func (l *Leases) release(digests []digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range digests {
		if l.held[d]--; l.held[d] == 0 {
			delete(l.held, d)
		}
	}
}

// Delete calls fn, which deletes what has the digest, unless it is held or needed says that it is in use; it tells whether it did.
// The decision and its mark are one step: who holds the digest from now on waits until it is gone. needed must not block.
func (l *Leases) Delete(d digest.Digest, needed func(digest.Digest) bool, fn func() error) (bool, error) {
	done := l.mark(d, needed)
	if done == nil {
		return false, nil
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.deleting, d)
		close(done)
	}()
	return true, fn()
}

// mark looks at leases before use: who makes something used does so before it ends its lease.
func (l *Leases) mark(d digest.Digest, needed func(digest.Digest) bool) chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[d] > 0 || needed(d) {
		return nil
	}
	if l.deleting == nil {
		l.deleting = map[digest.Digest]chan struct{}{}
	}
	done := make(chan struct{})
	l.deleting[d] = done
	return done
}
