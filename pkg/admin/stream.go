package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc"
)

// operate performs a long operation. Each change of what progress returns is an event, its end the last one. It returns
// after the operation has ended; that is cancelled if the client cannot be written to.
func (s *Server) operate(
	ctx context.Context, w *answer, progress func() Event, operation func(context.Context) (any, error),
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var result any
	done := make(chan error, 1)
	go func() {
		done <- recovered("operation", func() (err error) {
			result, err = operation(ctx)
			return err
		})
	}()
	ticker := time.NewTicker(s.progress)
	defer ticker.Stop()
	last := Event{}
	report := func() error {
		e := progress()
		if reflect.DeepEqual(e, Event{}) || reflect.DeepEqual(e, last) {
			return nil
		}
		last = e
		return send(w, e)
	}
	for {
		select {
		case err := <-done:
			return errors.Join(report(), finish(ctx, w, result, err))
		case <-ticker.C:
			if err := report(); err != nil {
				cancel()
				return errors.Join(err, <-done)
			}
		}
	}
}

// finish sends the last event. An error that is the first one is left to the caller to answer.
func finish(ctx context.Context, w *answer, result any, err error) error {
	if err == nil {
		var raw json.RawMessage
		if raw, err = json.Marshal(result); err == nil {
			return send(w, Event{Result: raw})
		}
	}
	if !w.begun {
		return err
	}
	body, _ := encodeError(told(ctx, err))
	return send(w, Event{Error: body})
}

func send(w *answer, e Event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	w.Header().Set(contentType, mediaEvents)
	if _, err := w.Write(append(line, '\n')); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

func noProgress() Event { return Event{} }

// board holds the last word about each layer of a push, in the order in which they were first told of.
type board struct {
	mu     sync.Mutex
	layers []imagesvc.LayerProgress
	places map[digest.Digest]int
}

func (b *board) put(l imagesvc.LayerProgress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i, ok := b.places[l.Digest]; ok {
		b.layers[i] = l
		return
	}
	if b.places == nil {
		b.places = map[digest.Digest]int{}
	}
	b.places[l.Digest] = len(b.layers)
	b.layers = append(b.layers, l)
}

func (b *board) event() Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Event{Layers: append([]imagesvc.LayerProgress(nil), b.layers...)}
}

// upload counts what is read of a request's body, and cancels the operation when the client goes: net/http does not tell
// before the end of a body.
type upload struct {
	body   io.Reader
	cancel context.CancelFunc
	n      atomic.Int64
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.body.Read(p)
	u.n.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		u.cancel()
	}
	return n, err
}

func (u *upload) event() Event { return Event{Read: u.n.Load()} }

// download is the answer with an archive, which begins with the first byte.
type download struct{ w *answer }

func (d download) Write(p []byte) (int, error) {
	d.begin()
	return d.w.Write(p)
}

func (d download) begin() {
	if !d.w.begun {
		d.w.Header().Set(contentType, mediaTar)
		d.w.Header().Set("Trailer", errorTrailer)
	}
}

// end sends the trailer. An error before the first byte is left to the caller to answer.
func (d download) end(ctx context.Context, err error) error {
	body := &Error{}
	if err != nil {
		if !d.w.begun {
			return err
		}
		body, _ = encodeError(told(ctx, err))
	}
	d.begin()
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	if !d.w.begun {
		d.w.WriteHeader(http.StatusOK)
	}
	d.w.Header().Set(errorTrailer, string(raw))
	return nil
}
