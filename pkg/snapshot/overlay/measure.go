package overlay

import (
	"context"
	"fmt"
	"sync"
	"time"

	"criserver/pkg/snapshot"
)

const (
	measureEvery = 30 * time.Second
	// restFactor times as long as a walk took the measurer rests: it is busy for a tenth of the time at most.
	restFactor = 9
)

// measurer keeps what snapshots take on disk, as a walk of their trees found last. It walks what somebody has asked for,
// one tree at a time: first those that have never been measured, the newest of them first, then whoever has
// waited longest for its turn. A tree has its turn when some time has gone by since the last walk, twice as long if
// that walk found nothing new, so that trees that change are measured more often.
type measurer struct {
	every  time.Duration
	walk   func(ctx context.Context, key string) (snapshot.Usage, error)
	signal chan struct{} // capacity 1
	end    context.CancelFunc
	done   sync.WaitGroup

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

func newMeasurer(every time.Duration, walk func(ctx context.Context, key string) (snapshot.Usage, error)) *measurer {
	if every == 0 {
		every = measureEvery
	}
	return &measurer{every: every, walk: walk, signal: make(chan struct{}, 1), entries: map[string]*measured{}}
}

func (m *measurer) start() {
	var ctx context.Context
	ctx, m.end = context.WithCancel(context.Background())
	m.done.Go(func() { m.loop(ctx) })
}

// stop ends the walk under way.
func (m *measurer) stop(ctx context.Context) error {
	m.end()
	if err := waitOn(ctx, m.done.Wait); err != nil {
		return fmt.Errorf("stop measuring snapshots: %w", err)
	}
	return nil
}

// add takes in a snapshot, to be measured soon or only when somebody asks.
func (m *measurer) add(key string, soon bool) {
	m.mu.Lock()
	m.serial++
	m.entries[key] = &measured{key: key, serial: m.serial, wanted: soon}
	m.mu.Unlock()
	if soon {
		m.wake()
	}
}

func (m *measurer) remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
}

// usage returns the last measurement of a snapshot and asks for a new one.
func (m *measurer) usage(key string) snapshot.Measurement {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[key]
	if e == nil { // just removed, or not added yet
		return snapshot.Measurement{}
	}
	m.want(e)
	return e.last
}

// want asks for a walk, once. The caller holds m.mu.
func (m *measurer) want(e *measured) {
	if !e.wanted {
		e.wanted = true
		m.wake()
	}
}

// total adds up the last measurements and asks for new ones. It is of this moment if there is nothing to measure.
func (m *measurer) total() snapshot.Measurement {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.entries) == 0 {
		return snapshot.Measurement{Measured: time.Now()}
	}
	var sum snapshot.Measurement
	for _, e := range m.entries {
		m.want(e)
		sum = together(sum, e.last)
	}
	return sum
}

// wake does not block.
func (m *measurer) wake() {
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

func (m *measurer) loop(ctx context.Context) {
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
func (m *measurer) next(now time.Time) (*measured, time.Duration) {
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

func (m *measurer) before(a, b *measured) bool {
	if a.tried.IsZero() != b.tried.IsZero() {
		return a.tried.IsZero()
	}
	if a.tried.IsZero() {
		return a.serial > b.serial
	}
	return m.due(a).Before(m.due(b))
}

func (m *measurer) due(e *measured) time.Time {
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
func (m *measurer) store(e *measured, usage snapshot.Usage, err error, start, end time.Time) {
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
