// Package measure finds out what snapshots take on disk by walking their trees in the background, for drivers and file
// systems that keep no count. Nobody waits for a walk.
package measure

import (
	"context"
	"fmt"
	"sync"
	"time"

	"criserver/pkg/snapshot"
)

// Every is the least time between two walks of a tree, unless New is told another.
const Every = 30 * time.Second

// restFactor times as long as a walk took the measurer rests: it is busy for a tenth of the time at most.
const restFactor = 9

// Measurer keeps what snapshots take on disk, as a walk of their trees found last. It walks what somebody has asked for,
// one tree at a time: first those that have never been measured, the newest of them first, then whoever has
// waited longest for its turn. A tree has its turn when some time has gone by since the last walk, twice as long if
// that walk found nothing new, so that trees that change are measured more often. Start and Stop it.
type Measurer struct {
	every  time.Duration
	walk   func(ctx context.Context, key string) (snapshot.Usage, error)
	signal chan struct{} // capacity 1
	end    context.CancelFunc
	done   chan struct{} // closed when the loop has ended

	mu      sync.Mutex
	serial  uint64
	entries map[string]*measured
}

// measured is a snapshot. The measurer's mutex guards it.
type measured struct {
	key    string
	serial uint64 // the newer, the higher
	last   snapshot.Measurement
	wanted bool
	tried  time.Time // when the last walk ended, however it did
	quiet  bool      // the last walk found what the one before had found
}

// New makes a measurer whose walk measures the snapshot of a key. every is the least time between two walks of a tree; 0
// is Every.
func New(every time.Duration, walk func(ctx context.Context, key string) (snapshot.Usage, error)) *Measurer {
	if every == 0 {
		every = Every
	}
	return &Measurer{every: every, walk: walk, signal: make(chan struct{}, 1), entries: map[string]*measured{}}
}

// Start lets walks begin.
func (m *Measurer) Start() {
	var ctx context.Context
	ctx, m.end = context.WithCancel(context.Background())
	m.done = make(chan struct{})
	go func() {
		defer close(m.done)
		m.loop(ctx)
	}()
}

// Stop ends the walk under way, and waits for its end, but not beyond the context's.
func (m *Measurer) Stop(ctx context.Context) error {
	m.end()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop measuring snapshots: %w", ctx.Err())
	}
}

// Add takes in a snapshot, in place of one that had the key before, to be measured soon or only when somebody asks.
func (m *Measurer) Add(key string, soon bool) {
	m.mu.Lock()
	m.serial++
	m.entries[key] = &measured{key: key, serial: m.serial, wanted: soon}
	m.mu.Unlock()
	if soon {
		m.wake()
	}
}

// Remove forgets a snapshot. Its tree may vanish before or after, also while it is walked.
func (m *Measurer) Remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
}

// Usage returns the last measurement of a snapshot and asks for a new one. It is zero for an unknown key.
func (m *Measurer) Usage(key string) snapshot.Measurement {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[key]
	if e == nil {
		return snapshot.Measurement{}
	}
	m.want(e)
	return e.last
}

// want asks for a walk, once. The caller holds m.mu.
func (m *Measurer) want(e *measured) {
	if !e.wanted {
		e.wanted = true
		m.wake()
	}
}

// Total adds up the last measurements and asks for new ones. It is of this moment if there is nothing to measure.
func (m *Measurer) Total() snapshot.Measurement {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.entries) == 0 {
		return snapshot.Measurement{Measured: time.Now()}
	}
	var sum snapshot.Measurement
	for _, e := range m.entries {
		m.want(e)
		sum = sum.Add(e.last)
	}
	return sum
}

// wake does not block.
func (m *Measurer) wake() {
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

func (m *Measurer) loop(ctx context.Context) {
	for ctx.Err() == nil {
		e, wait := m.next(time.Now())
		if e == nil {
			sleep(ctx, wait, m.signal)
			continue
		}
		start := time.Now()
		usage, err := m.walk(ctx, e.key)
		end := time.Now()
		m.store(e, usage, err, start, end)
		sleep(ctx, restFactor*end.Sub(start), nil)
	}
}

// next returns the snapshot to walk now, or how long it is until one has its turn: 0 if nobody wants one.
func (m *Measurer) next(now time.Time) (*measured, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var best *measured
	for _, e := range m.entries {
		if e.wanted && (best == nil || m.before(e, best)) {
			best = e
		}
	}
	if best == nil {
		return nil, 0
	}
	if wait := m.due(best).Sub(now); wait > 0 {
		return nil, wait
	}
	best.wanted = false // who asks from now on may want to see what the walk has passed by
	return best, 0
}

func (m *Measurer) before(a, b *measured) bool {
	if a.tried.IsZero() != b.tried.IsZero() {
		return a.tried.IsZero()
	}
	if a.tried.IsZero() {
		return a.serial > b.serial
	}
	return m.due(a).Before(m.due(b))
}

func (m *Measurer) due(e *measured) time.Time {
	switch {
	case e.tried.IsZero():
		return e.tried
	case e.quiet:
		return e.tried.Add(2 * m.every)
	}
	return e.tried.Add(m.every)
}

// store keeps the result of a walk. A tree that could not be walked, because it has been removed or the disk fails, keeps
// the measurement that it has, whose time tells. That time is the start: what was written before it has been seen.
func (m *Measurer) store(e *measured, usage snapshot.Usage, err error, start, end time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.tried = end
	if err != nil {
		return
	}
	e.quiet = !e.last.Measured.IsZero() && e.last.Usage == usage
	e.last = snapshot.Measurement{Usage: usage, Measured: start}
}

// sleep returns after a time, 0 being for ever, or earlier at a signal or the context's end.
func sleep(ctx context.Context, d time.Duration, signal <-chan struct{}) {
	var over <-chan time.Time
	if d > 0 || signal == nil {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-ctx.Done():
	case <-signal:
	case <-over:
	}
}
