package imagesvc

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/registry"
)

// progress follows the pulls and layers that are under way.
type progress struct {
	service  *Service
	counters counters

	mu     sync.Mutex
	pulls  []*pullProgress // in the order of their beginning
	layers map[digest.Digest]*layerProgress
}

// counters only grow.
type counters struct{ pulls, failed, layers, reused, bytes atomic.Int64 }

// Counters are what the service has done since its start.
type Counters struct {
	// Pulls have ended, Failed of them with an error.
	Pulls, Failed int64
	// Layers were fetched, Reused ones were there already.
	Layers, Reused int64
	// Bytes of layers were fetched.
	Bytes int64
}

type pullProgress struct {
	ref     string
	started time.Time
	// The rest is set once, under the lock.
	descs  []ocispec.Descriptor
	ids    []digest.Digest
	exists []bool
}

// layerProgress is a layer that is being fetched.
type layerProgress struct {
	blob       layerBlob
	committing atomic.Bool
}

// Counters returns what was done since the start.
func (s *Service) Counters() Counters {
	c := &s.progress.counters
	return Counters{
		Pulls: c.pulls.Load(), Failed: c.failed.Load(), Layers: c.layers.Load(), Reused: c.reused.Load(), Bytes: c.bytes.Load(),
	}
}

// Progress tells of the pulls that are under way, the oldest first: of those of a name, or of all with "".
func (s *Service) Progress(name string) []Progress {
	if ref, err := registry.Parse(name); name != "" && err == nil {
		name = ref.String()
	}
	p := &s.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Progress
	for _, pull := range p.pulls {
		if name == "" || pull.ref == name {
			out = append(out, Progress{Ref: pull.ref, Started: pull.started, Layers: p.of(pull)})
		}
	}
	return out
}

// of tells how far the layers of a pull are. It needs the lock.
func (p *progress) of(pull *pullProgress) []LayerProgress {
	out := make([]LayerProgress, 0, len(pull.ids))
	for i, desc := range pull.descs {
		l := LayerProgress{Digest: desc.Digest, Size: desc.Size, State: LayerWaiting}
		if pull.exists[i] {
			l.State = LayerExists
		} else if at, ok := p.layers[pull.ids[i]]; ok {
			l.State, l.Fetched, l.Unpacked = LayerFetching, at.blob.Fetched(), at.blob.Consumed()
			if at.committing.Load() {
				l.State = LayerCommitting
			}
		} else if _, err := p.service.layers.Layer(context.Background(), pull.ids[:i+1]); err == nil { // from memory
			l.State = LayerDone
		}
		if l.State == LayerExists || l.State == LayerDone {
			l.Fetched, l.Unpacked = l.Size, l.Size
		}
		out = append(out, l)
	}
	return out
}

func (p *progress) begin(ref string) *pullProgress {
	pull := &pullProgress{ref: ref, started: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pulls = append(p.pulls, pull)
	return pull
}

// layersKnown notes what a pull has to do, now that the image's documents are there.
func (p *progress) layersKnown(ctx context.Context, pull *pullProgress, docs *document.Image) {
	exists := make([]bool, len(docs.Layers))
	for i := range docs.Layers {
		_, err := p.service.layers.Layer(ctx, docs.Layers[:i+1])
		if exists[i] = err == nil; exists[i] {
			p.counters.reused.Add(1)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pull.descs, pull.ids, pull.exists = docs.Parsed.Layers, docs.Layers, exists
}

func (p *progress) end(pull *pullProgress, err error) {
	p.counters.pulls.Add(1)
	if err != nil {
		p.counters.failed.Add(1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pulls = slices.DeleteFunc(p.pulls, func(q *pullProgress) bool { return q == pull })
}

// layer follows a layer until the returned function is called.
func (p *progress) layer(id digest.Digest, blob layerBlob) (at *layerProgress, end func()) {
	at = &layerProgress{blob: blob}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.layers == nil {
		p.layers = map[digest.Digest]*layerProgress{}
	}
	p.layers[id] = at
	return at, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.layers[id] == at {
			delete(p.layers, id)
		}
	}
}
