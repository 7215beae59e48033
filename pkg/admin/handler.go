package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	contentType   = "Content-Type"
	mediaJSON     = "application/json"
	mediaEvents   = "application/x-ndjson"
	mediaTar      = "application/x-tar"
	errorTrailer  = "X-Error"
	importNameKey = "name"
)

// handler is a call. An error of it is the answer, unless that has begun.
type handler func(w *answer, r *http.Request) error

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	route := func(method, path string, h handler) {
		mux.Handle(path, guard(func(w *answer, r *http.Request) error {
			if r.Method != method {
				w.Header().Set("Allow", method)
				return fmt.Errorf("%w: %s takes %s, not %s", ErrMethod, path, method, r.Method)
			}
			return h(w, r)
		}))
	}
	route(http.MethodGet, "/v1/images", s.list)
	route(http.MethodPost, "/v1/images/inspect", call(s.inspect))
	route(http.MethodPost, "/v1/images/remove", call(s.remove))
	route(http.MethodPost, "/v1/images/tag", call(s.tag))
	route(http.MethodPost, "/v1/images/explain", call(s.explain))
	route(http.MethodPost, "/v1/images/pull", s.pull)
	route(http.MethodPost, "/v1/images/push", s.push)
	route(http.MethodPost, "/v1/images/commit", s.commit)
	route(http.MethodPost, "/v1/images/check", s.check)
	route(http.MethodPost, "/v1/images/import", s.imports)
	route(http.MethodPost, "/v1/images/export", s.export)
	mux.Handle("/", guard(func(_ *answer, r *http.Request) error {
		return fmt.Errorf("%s: %w: criserver and the program that asks are of different versions", r.URL.Path, ErrUnsupported)
	}))
	return mux
}

// call makes a handler of a function of values.
func call[Request, Response any](fn func(context.Context, Request) (Response, error)) handler {
	return func(w *answer, r *http.Request) error {
		var req Request
		if err := decode(w, r, &req); err != nil {
			return err
		}
		resp, err := fn(r.Context(), req)
		if err != nil {
			return err
		}
		return encode(w, resp)
	}
}

// decode reads the request to its end, without which net/http would not notice that the client goes.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	in := newPatient(w, r, requestPatience)
	body, err := io.ReadAll(http.MaxBytesReader(w, in, maxRequest))
	in.done()
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, maxRequest)
	}
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: there is more than one JSON value", ErrInvalid)
	}
	return nil
}

// encode answers with a value.
func encode(w http.ResponseWriter, value any) error {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false) // people read it too
	if err := e.Encode(value); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set(contentType, mediaJSON)
	_, err := body.WriteTo(w)
	return err
}

// answer is a ResponseWriter that knows whether its status is out.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) WriteHeader(status int) {
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// guard makes an http.Handler: it answers errors and panics, and logs. Requests themselves are never logged: they hold
// credentials.
func guard(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		a := &answer{ResponseWriter: w}
		// Who neither sends nor reads does not hold up the end of a cancelled operation.
		control := http.NewResponseController(w)
		stop := context.AfterFunc(r.Context(), func() {
			_ = control.SetReadDeadline(time.Now())
			_ = control.SetWriteDeadline(time.Now().Add(cancelledLinger))
		})
		defer stop()
		err := recovered(r.URL.Path, func() error { return h(a, r) })
		entry := logrus.WithFields(logrus.Fields{"call": r.URL.Path, "took": time.Since(start).Round(10 * time.Microsecond)})
		if err == nil {
			entry.Debug("administrator's call")
			return
		}
		entry.WithError(err).Info("administrator's call failed")
		if a.begun {
			panic(http.ErrAbortHandler) // cuts the answer off; net/http says nothing of it
		}
		body, status := encodeError(told(r.Context(), err))
		w.Header().Set(contentType, mediaJSON)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	})
}

// recovered turns a panic of fn into an error of its call: the daemon goes on.
func recovered(what string, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			logrus.WithFields(logrus.Fields{"call": what, "panic": p}).Errorf("a call panicked\n%s", debug.Stack())
			err = fmt.Errorf("%s panicked: %v; criserver's log has the stack", what, p)
		}
	}()
	return fn()
}
