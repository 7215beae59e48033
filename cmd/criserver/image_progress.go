package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"criserver/pkg/admin"
	"criserver/pkg/imagesvc"
)

// progress shows how far an operation is. end is called once, last.
type progress interface {
	show(e admin.Event)
	end(ok bool)
}

// progress chooses: events for programs, bars on a terminal, or else a line each time that something begins or ends, which
// stays out of the output. total is the size of an archive, 0 if it is not known.
func (s *session) progress(total int64, say words) progress {
	switch {
	case s.json:
		return events{s.out}
	case isTerminal(s.out):
		return newBars(total, say, mpb.WithOutput(s.out))
	}
	return lines{s.notes, say, map[digest.Digest]imagesvc.LayerState{}}
}

// words are what people read of a layer that is on its way, and of one that is wholly here or there but not done.
type words struct{ moving, moved string }

var (
	wordsOfPull = words{"fetching", "unpacking"}
	wordsOfPush = words{"sending", "sending"} // the protocol has the states of a pull only
)

func (w words) of(l imagesvc.LayerProgress) string {
	switch {
	case l.State != imagesvc.LayerFetching:
		return string(l.State)
	case l.Fetched == l.Size:
		return w.moved
	}
	return w.moving
}

// result writes the last event, or what people want of it.
func (s *session) result(value any, human func(w io.Writer)) error {
	if !s.json {
		return s.print(value, human)
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return json.NewEncoder(s.out).Encode(admin.Event{Result: raw})
}

// events writes each as a line of JSON.
type events struct{ out io.Writer }

func (p events) show(e admin.Event) { _ = json.NewEncoder(p.out).Encode(e) }
func (p events) end(bool)           {}

// lines tells of each change of a layer's state.
type lines struct {
	out    io.Writer
	say    words
	states map[digest.Digest]imagesvc.LayerState
}

func (p lines) show(e admin.Event) {
	for _, l := range e.Layers {
		if p.states[l.Digest] != l.State {
			p.states[l.Digest] = l.State
			fmt.Fprintf(p.out, "%s %s %s\n", shortID(l.Digest), p.say.of(l), size(l.Size))
		}
	}
}

func (p lines) end(bool) {}

// bars has one for each layer, or one for an archive.
type bars struct {
	all    *mpb.Progress
	say    words
	layers map[digest.Digest]*bar
	total  int64
	upload *bar
}

// bar is a line of the screen.
type bar struct {
	*mpb.Bar
	state atomic.Value // string
	size  int64
}

func newBars(total int64, say words, options ...mpb.ContainerOption) *bars {
	return &bars{all: mpb.New(append(options, mpb.WithWidth(60))...), say: say, layers: map[digest.Digest]*bar{}, total: total}
}

func (p *bars) add(name string, total int64) *bar {
	b := &bar{size: total}
	b.state.Store("")
	state := decor.Any(func(decor.Statistics) string { return b.state.Load().(string) }, decor.WCSyncSpaceR)
	// With a total of 0 it does not end by itself when all is fetched: unpacking goes on.
	b.Bar = p.all.AddBar(0, mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), state), mpb.AppendDecorators(
		decor.Any(func(s decor.Statistics) string { return size(s.Current) + " / " + size(s.Total) }, decor.WCSyncSpace)))
	b.SetTotal(total, false)
	return b
}

func (p *bars) show(e admin.Event) {
	for _, l := range e.Layers {
		b := p.layers[l.Digest]
		if b == nil {
			b = p.add(shortID(l.Digest), l.Size)
			p.layers[l.Digest] = b
		}
		b.state.Store(p.say.of(l))
		if l.State == imagesvc.LayerDone || l.State == imagesvc.LayerExists {
			b.complete()
			continue
		}
		b.SetCurrent(l.Fetched)
	}
	if e.Read > 0 && p.total > 0 {
		if p.upload == nil {
			p.upload = p.add("archive", p.total)
			p.upload.state.Store("reading")
		}
		p.upload.SetCurrent(e.Read)
	}
}

func (b *bar) complete() {
	b.SetCurrent(b.size)
	b.SetTotal(b.size, true)
}

// end leaves the bars on the screen as they are.
func (p *bars) end(ok bool) {
	finish := func(b *bar) {
		if !ok {
			b.Abort(false)
			return
		}
		if !b.Completed() {
			b.state.Store(string(imagesvc.LayerDone))
		}
		b.complete()
	}
	for _, b := range p.layers {
		finish(b)
	}
	if p.upload != nil {
		finish(p.upload)
	}
	p.all.Wait()
}
