package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// patient is the body of a request, which does not wait longer than so for its next piece. Its errors say whose fault it is.
type patient struct {
	ctx     context.Context //nolint:containedctx // the request's, of which this is a part
	body    io.ReadCloser
	control *http.ResponseController
	limit   time.Duration
}

func newPatient(w http.ResponseWriter, r *http.Request, limit time.Duration) *patient {
	return &patient{ctx: r.Context(), body: r.Body, control: http.NewResponseController(w), limit: limit}
}

func (p *patient) Read(b []byte) (int, error) {
	p.deadline(time.Now().Add(p.limit))
	n, err := p.body.Read(b)
	switch {
	case errors.Is(context.Cause(p.ctx), ErrStopping): // not the client's fault
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("%w: nothing for %s", ErrSlow, p.limit)
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%w: it is cut off: %w", ErrInvalid, err)
	}
	return n, err
}

// done lets net/http wait for the end of the connection, without a limit.
func (p *patient) done() { p.deadline(time.Time{}) }

// deadline leaves the one that is set when the request's context ends.
func (p *patient) deadline(t time.Time) {
	_ = p.control.SetReadDeadline(t)
	if p.ctx.Err() != nil {
		_ = p.control.SetReadDeadline(time.Now())
	}
}

func (p *patient) Close() error { return p.body.Close() }
