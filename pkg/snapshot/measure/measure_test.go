package measure

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
)

// walks is a walk of a second each, in a synctest bubble.
type walks struct {
	mu    sync.Mutex
	took  time.Duration
	keys  []string
	bytes map[string]int64
	err   error
}

func (w *walks) walk(ctx context.Context, key string) (snapshot.Usage, error) {
	select {
	case <-time.After(w.took):
	case <-ctx.Done():
		return snapshot.Usage{}, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys = append(w.keys, key)
	return snapshot.Usage{Bytes: w.bytes[key], Inodes: 1}, w.err
}

func (w *walks) set(key string, bytes int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes[key], w.err = bytes, err
}

// done returns the walks since the last call.
func (w *walks) done() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := w.keys
	w.keys = nil
	return keys
}

func inBubble(t *testing.T, took time.Duration, run func(t *testing.T, m *Measurer, w *walks)) {
	synctest.Test(t, func(t *testing.T) {
		w := &walks{took: took, bytes: map[string]int64{}}
		m := New(0, w.walk)
		m.Start()
		run(t, m, w)
		if err := m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func wantWalks(t *testing.T, w *walks, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := w.done(); !slices.Equal(got, want) {
		t.Errorf("walks %q, want %q", got, want)
	}
}

func TestMeasurerWalksOnlyWhatIsAskedFor(t *testing.T) {
	inBubble(t, time.Millisecond, func(t *testing.T, m *Measurer, w *walks) {
		m.Add("a", false)
		m.Add("b", false)
		time.Sleep(time.Hour)
		wantWalks(t, w)
		if got := m.Usage("a"); got != (snapshot.Measurement{}) {
			t.Errorf("before the first walk: %+v", got)
		}
		w.set("a", 7, nil)
		start := time.Now()
		time.Sleep(time.Minute)
		wantWalks(t, w, "a")
		want := snapshot.Measurement{Usage: snapshot.Usage{Bytes: 7, Inodes: 1}, Measured: start}
		if got := m.Usage("a"); got != want {
			t.Errorf("after the walk: %+v, want %+v", got, want)
		}
		if got := m.Usage("none"); got != (snapshot.Measurement{}) {
			t.Errorf("of an unknown key: %+v", got)
		}
	})
}

func TestMeasurerIsPaced(t *testing.T) {
	inBubble(t, 10*time.Second, func(t *testing.T, m *Measurer, w *walks) {
		for _, key := range []string{"a", "b", "c"} {
			m.Add(key, false)
		}
		for range 1000 { // somebody asks all the time
			m.Total()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := len(w.done()); n != 10 {
			t.Errorf("%d walks of 10 s in 1000 s, want 10: a tenth of the time", n)
		}
	})
	inBubble(t, 10*time.Microsecond, func(t *testing.T, m *Measurer, w *walks) {
		m.Add("quiet", false)
		m.Add("busy", false)
		for i := range 600 {
			w.set("busy", int64(i), nil)
			m.Total()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		count := map[string]int{}
		for _, key := range w.done() {
			count[key]++
		}
		if count["busy"] != 20 || count["quiet"] < 10 || count["quiet"] > 11 {
			t.Errorf("walks in 10 minutes: %v, want one each 30 s of the tree that changes, each minute of the other", count)
		}
	})
}

func TestMeasurerOrder(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, m *Measurer, w *walks) {
		for _, key := range []string{"old", "new", "newest"} {
			m.Add(key, false)
		}
		m.Total()
		time.Sleep(time.Minute)
		wantWalks(t, w, "newest", "new", "old")
		m.Total() // in their turn: the longest ago first
		time.Sleep(5 * time.Minute)
		wantWalks(t, w, "newest", "new", "old")
		m.Total()
		m.Add("later", true)
		time.Sleep(10 * time.Minute)
		if got := w.done(); len(got) != 4 || got[0] != "newest" && got[0] != "later" || got[1] != "later" && got[0] != "later" {
			t.Errorf("walks %q: a snapshot that has never been measured waits for others", got)
		}
	})
}

func TestMeasurerTotal(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, m *Measurer, w *walks) {
		if got, want := m.Total(), (snapshot.Measurement{Measured: time.Now()}); got != want {
			t.Errorf("of nothing: %+v, want %+v", got, want)
		}
		w.set("a", 10, nil)
		w.set("b", 5, nil)
		m.Add("a", false)
		m.Add("b", true)
		start := time.Now()
		if got := m.Total(); got != (snapshot.Measurement{}) {
			t.Errorf("before a walk: %+v", got)
		}
		time.Sleep(5 * time.Second)
		want := snapshot.Measurement{Usage: snapshot.Usage{Bytes: 5, Inodes: 1}, Measured: start}
		if got := m.Total(); got != want {
			t.Errorf("after one of two: %+v, want %+v", got, want)
		}
		time.Sleep(time.Minute)
		if got := m.Total(); got.Bytes != 15 || got.Inodes != 2 || got.Measured.Before(start) {
			t.Errorf("after both: %+v", got)
		}
		m.Remove("b")
		if got := m.Total(); got.Bytes != 10 || got.Inodes != 1 {
			t.Errorf("after a removal: %+v", got)
		}
	})
}

// A tree that vanishes, or a disk that fails, neither stops the measurer nor makes it walk all the time.
func TestMeasurerSurvivesErrors(t *testing.T) {
	for _, broken := range []error{unix.ENOENT, unix.EIO} {
		inBubble(t, time.Millisecond, func(t *testing.T, m *Measurer, w *walks) {
			w.set("a", 7, nil)
			m.Add("a", true)
			time.Sleep(time.Minute)
			wantWalks(t, w, "a")
			before := m.Usage("a")
			w.set("a", 8, broken)
			for range 60 {
				m.Usage("a")
				time.Sleep(time.Second)
			}
			if got := w.done(); len(got) > 3 {
				t.Errorf("%d walks in a minute that end with %v", len(got), broken)
			}
			if got := m.Usage("a"); got != before || got.Bytes != 7 {
				t.Errorf("%+v, want the last good measurement %+v", got, before)
			}
			m.Remove("a")
			time.Sleep(time.Hour)
			w.done()
			w.set("b", 9, nil)
			m.Add("b", true)
			time.Sleep(time.Minute)
			wantWalks(t, w, "b")
		})
	}
}

func TestMeasurerForgetsTheRemoved(t *testing.T) {
	inBubble(t, time.Minute, func(t *testing.T, m *Measurer, w *walks) {
		w.set("a", 7, nil)
		m.Add("a", true)
		time.Sleep(time.Second)
		m.Remove("a") // while it is walked
		m.Add("a", false)
		time.Sleep(time.Hour)
		if got := m.Usage("a"); got != (snapshot.Measurement{}) {
			t.Errorf("a new snapshot has the measurement of an old one of its key: %+v", got)
		}
	})
}

func TestMeasurerStopsInAWalk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &walks{took: 24 * time.Hour, bytes: map[string]int64{}}
		m := New(0, w.walk)
		m.Start()
		m.Add("a", true)
		time.Sleep(time.Second)
		start := time.Now()
		if err := m.Stop(context.Background()); err != nil || time.Since(start) > 0 {
			t.Errorf("stop: %v after %v", err, time.Since(start))
		}
	})
	m := New(0, func(context.Context, string) (snapshot.Usage, error) {
		<-t.Context().Done() // a walk that hangs on the disk
		return snapshot.Usage{}, nil
	})
	m.Start()
	m.Add("a", true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Stop(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("stop: %v", err)
	}
}
