// Package progress follows pulls and other moves of images while they are under way.
package progress

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pull is a pull that is under way, as far as it is known.
type Pull struct {
	// Ref is the full name that is pulled.
	Ref     string    `json:"ref"`
	Started time.Time `json:"started"`
	// Layers are those of the image, lowest first; empty until its manifest is there.
	Layers []Layer `json:"layers"`
}

// Layer is how far one layer is. All numbers count compressed bytes, so that they add up to the image's size.
type Layer struct {
	// Digest is that of the blob in the manifest.
	Digest digest.Digest `json:"digest"`
	State  State         `json:"state"`
	// Size is the whole blob, Fetched what of it is on this node, Unpacked what of it has been unpacked.
	Size     int64 `json:"size"`
	Fetched  int64 `json:"fetched"`
	Unpacked int64 `json:"unpacked"`
}

// State is what happens to a layer.
type State string

// A layer goes from waiting through fetching and committing to done; one that is there already exists.
const (
	Waiting    State = "waiting"
	Fetching   State = "fetching" // and, at the same time, unpacking
	Committing State = "committing"
	Done       State = "done"
	Exists     State = "exists"
)

// Counters are what has been done since the start. They only grow.
type Counters struct {
	// Pulls have ended, Failed of them with an error.
	Pulls, Failed int64
	// Layers were fetched, Reused ones were there already.
	Layers, Reused int64
	// Bytes of layers were fetched.
	Bytes int64
}

// Blob is a layer's blob while it arrives.
type Blob interface {
	Fetched() int64
	Consumed() int64
}

// Tracker follows what is under way. Its methods may be called at the same time.
type Tracker struct {
	// Exists tells whether the uppermost layer of a chain is there. It must not block.
	Exists func(chain []digest.Digest) bool

	mu       sync.Mutex
	counters Counters
	pulls    []*Tracked // in the order of their beginning
	layers   map[digest.Digest]*TrackedLayer
}

// Tracked is one pull.
type Tracked struct {
	tracker *Tracker
	ref     string
	started time.Time
	// The rest is set once, under the lock.
	descs  []ocispec.Descriptor
	ids    []digest.Digest
	exists []bool
}

// TrackedLayer is a layer that is being fetched.
type TrackedLayer struct {
	tracker    *Tracker
	id         digest.Digest
	blob       Blob
	had        int64
	committing atomic.Bool
}

// Counters returns what was done since the start.
func (t *Tracker) Counters() Counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counters
}

// Pulls tells of the pulls that are under way, the oldest first: of those of a full name, or of all with "".
func (t *Tracker) Pulls(ref string) []Pull {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Pull
	for _, p := range t.pulls {
		if ref == "" || p.ref == ref {
			out = append(out, Pull{Ref: p.ref, Started: p.started, Layers: t.of(p)})
		}
	}
	return out
}

// of tells how far the layers of a pull are. It needs the lock.
func (t *Tracker) of(p *Tracked) []Layer {
	out := make([]Layer, 0, len(p.ids))
	for i, desc := range p.descs {
		l := Layer{Digest: desc.Digest, Size: desc.Size, State: Waiting}
		at, fetching := t.layers[p.ids[i]]
		switch {
		case p.exists[i]:
			l.State = Exists
		case fetching:
			l.State, l.Fetched, l.Unpacked = Fetching, at.blob.Fetched(), at.blob.Consumed()
			if at.committing.Load() {
				l.State = Committing
			}
		case t.Exists(p.ids[:i+1]):
			l.State = Done
		}
		if l.State == Exists || l.State == Done {
			l.Fetched, l.Unpacked = l.Size, l.Size
		}
		out = append(out, l)
	}
	return out
}

// Begin notes that a pull begins.
func (t *Tracker) Begin(ref string) *Tracked {
	p := &Tracked{tracker: t, ref: ref, started: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pulls = append(t.pulls, p)
	return p
}

// Layers notes what the pull has to do, now that the image's documents are there: the blobs and the layers that they become.
func (p *Tracked) Layers(descs []ocispec.Descriptor, ids []digest.Digest) {
	exists := make([]bool, len(ids))
	for i := range ids {
		exists[i] = p.tracker.Exists(ids[:i+1])
	}
	p.tracker.mu.Lock()
	defer p.tracker.mu.Unlock()
	p.descs, p.ids, p.exists = descs, ids, exists
	for _, there := range exists {
		if there {
			p.tracker.counters.Reused++
		}
	}
}

// End notes that the pull has ended, nil if well.
func (p *Tracked) End(err error) {
	t := p.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counters.Pulls++
	if err != nil {
		t.counters.Failed++
	}
	t.pulls = slices.DeleteFunc(t.pulls, func(q *Tracked) bool { return q == p })
}

// Layer follows a layer until its End.
func (t *Tracker) Layer(id digest.Digest, blob Blob) *TrackedLayer {
	l := &TrackedLayer{tracker: t, id: id, blob: blob, had: blob.Fetched()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.layers == nil {
		t.layers = map[digest.Digest]*TrackedLayer{}
	}
	t.layers[id] = l
	return l
}

// Committing notes that all of the layer has been unpacked.
func (l *TrackedLayer) Committing() {
	l.committing.Store(true)
	l.tracker.mu.Lock()
	defer l.tracker.mu.Unlock()
	l.tracker.counters.Layers++
	l.tracker.counters.Bytes += l.blob.Fetched() - l.had
}

// End notes that nobody is at the layer any more.
func (l *TrackedLayer) End() {
	l.tracker.mu.Lock()
	defer l.tracker.mu.Unlock()
	if l.tracker.layers[l.id] == l {
		delete(l.tracker.layers, l.id)
	}
}
