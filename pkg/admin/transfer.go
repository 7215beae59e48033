package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"

	"criserver/pkg/imagesvc"
)

func (s *Server) pull(w *answer, r *http.Request) error {
	var req PullRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if err := named("name", req.Name); err != nil {
		return err
	}
	var layers []imagesvc.LayerProgress
	var pulled atomic.Bool
	progress := func() Event {
		if pulled.Load() { // it is not under way any more: nobody else tells how its layers have ended
			return Event{Layers: ended(layers)}
		}
		// There may be two, with different credentials; their layers are the same.
		if pulls := s.b.Transfers.Progress(req.Name); len(pulls) > 0 {
			layers = pulls[0].Layers
			return Event{Layers: layers}
		}
		return Event{}
	}
	return s.operate(r.Context(), w, progress, func(ctx context.Context) (any, error) {
		id, err := s.b.Transfers.Pull(ctx, req.Name, req.Auth.decode())
		pulled.Store(err == nil)
		return PullResponse{ID: id}, err
	})
}

// ended is how the layers are after a pull that has succeeded.
func ended(layers []imagesvc.LayerProgress) []imagesvc.LayerProgress {
	out := slices.Clone(layers)
	for i, l := range out {
		if l.State != imagesvc.LayerExists && l.State != imagesvc.LayerDone {
			out[i].State, out[i].Fetched, out[i].Unpacked = imagesvc.LayerDone, l.Size, l.Size
		}
	}
	return out
}

func (s *Server) push(w *answer, r *http.Request) error {
	var req PushRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if err := named("source", req.Source); err != nil {
		return err
	}
	if req.Target == "" {
		req.Target = req.Source
	}
	var layers board
	return s.operate(r.Context(), w, layers.event, func(ctx context.Context) (any, error) {
		d, err := s.b.Transfers.Push(ctx, req.Source, req.Target, req.Auth.decode(), layers.put)
		return PushResponse{Digest: d}, err
	})
}

func (s *Server) imports(w *answer, r *http.Request) error {
	query := r.URL.Query()
	for key, values := range query {
		if key != importNameKey || len(values) != 1 {
			return fmt.Errorf("%w: query %q", ErrInvalid, r.URL.RawQuery)
		}
	}
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		return fmt.Errorf("answer while the archive comes: %w", err)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	body := newPatient(w, r, s.patience)
	defer body.done()
	archive := &upload{body: body, cancel: cancel}
	return s.operate(ctx, w, archive.event, func(ctx context.Context) (any, error) {
		images, err := s.b.Archives.Import(ctx, archive, imagesvc.ImportOptions{Name: query.Get(importNameKey)})
		return ImportResponse{Images: encodeImages(images)}, err
	})
}

func (s *Server) export(w *answer, r *http.Request) error {
	var req ExportRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if len(req.Names) == 0 {
		return fmt.Errorf("%w: names is empty", ErrInvalid)
	}
	for _, name := range req.Names {
		if err := named("names", name); err != nil {
			return err
		}
	}
	switch req.Format {
	case "":
		req.Format = imagesvc.FormatOCI
	case imagesvc.FormatOCI, imagesvc.FormatDocker:
	default:
		return fmt.Errorf("%w: format %q is not one of %s, %s", ErrInvalid, req.Format, imagesvc.FormatOCI, imagesvc.FormatDocker)
	}
	archive := download{w}
	err := recovered(r.URL.Path, func() error { return s.b.Archives.Export(r.Context(), archive, req.Names, req.Format) })
	return archive.end(r.Context(), err)
}

func (s *Server) check(w *answer, r *http.Request) error {
	var req CheckRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	return s.operate(r.Context(), w, noProgress, func(ctx context.Context) (any, error) {
		findings, err := s.b.Checker.Check(ctx, req.Repair)
		return CheckResponse{Findings: append([]imagesvc.Finding{}, findings...)}, err
	})
}

func (s *Server) commit(w *answer, r *http.Request) error {
	var req CommitRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if err := errors.Join(named("container", req.Container), named("name", req.Name)); err != nil {
		return err
	}
	return s.operate(r.Context(), w, noProgress, func(ctx context.Context) (any, error) {
		img, err := s.commitContainer(ctx, req)
		return encodeImage(img), err
	})
}
