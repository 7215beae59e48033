package streaming

import (
	"crypto/rand"
	"sync"
	"time"
)

const (
	// tokenLife is how long a URL is good.
	tokenLife = time.Minute
	// maxTokens is how many URLs may be waiting for their clients.
	maxTokens = 1000
)

// tokens are the URLs that nobody has used yet.
type tokens struct {
	mu      sync.Mutex
	waiting map[string]ticket
}

type ticket struct {
	op     Operation
	issued time.Time
}

// issue returns a token that nobody can guess. ErrBusy.
func (t *tokens) issue(op Operation, now time.Time) (string, error) {
	token := rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	if len(t.waiting) >= maxTokens {
		return "", ErrBusy
	}
	if t.waiting == nil {
		t.waiting = map[string]ticket{}
	}
	t.waiting[token] = ticket{op, now}
	return token, nil
}

// take returns what a token is for; it is good no more then.
func (t *tokens) take(token string, now time.Time) (Operation, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	got, ok := t.waiting[token]
	delete(t.waiting, token)
	return got.op, ok
}

// younger tells how many tokens are waiting that are not older than that.
func (t *tokens) younger(than time.Duration, now time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	n := 0
	for _, w := range t.waiting {
		if now.Sub(w.issued) <= than {
			n++
		}
	}
	return n
}

// expire forgets the old ones. The caller holds the lock.
func (t *tokens) expire(now time.Time) {
	for token, w := range t.waiting {
		if now.Sub(w.issued) > tokenLife {
			delete(t.waiting, token)
		}
	}
}
