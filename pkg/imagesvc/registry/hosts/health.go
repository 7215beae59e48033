package hosts

import (
	"sync"
	"time"
)

// How long an endpoint is passed over that gave no answer: the first time, and at most after it was so again and again.
const (
	firstRest = 30 * time.Second
	maxRest   = 5 * time.Minute
)

// Health remembers which endpoints gave no answer, over all pulls. The names are Pool.Identity's. The zero value knows
// of none.
type Health struct {
	mu      sync.Mutex
	resting map[string]rest
}

type rest struct {
	until time.Time
	wait  time.Duration
}

// Failed notes that an endpoint gave no answer. What fails while it rests, being the last that was left to try, does
// not rest longer for it.
func (h *Health) Failed(name string) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.resting[name]
	if now.Before(r.until) {
		return
	}
	r.wait = min(max(2*r.wait, firstRest), maxRest)
	r.until = now.Add(r.wait)
	if h.resting == nil {
		h.resting = map[string]rest{}
	}
	for other, old := range h.resting {
		if now.Sub(old.until) > maxRest { // so long that it says nothing
			delete(h.resting, other)
		}
	}
	h.resting[name] = r
}

// Answered notes that an endpoint gave an answer.
func (h *Health) Answered(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.resting, name)
}

// RestsUntil is when an endpoint is asked in its place again; zero: now.
func (h *Health) RestsUntil(name string) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.resting[name]; time.Now().Before(r.until) {
		return r.until
	}
	return time.Time{}
}
