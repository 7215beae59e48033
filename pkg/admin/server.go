// Package admin is the administrator's way into the daemon: HTTP/1.1 with JSON on a Unix socket that only root may use. It has
// both sides, Server and Client, and is an edge as pkg/cri is: it decodes a request, calls what is below, encodes the result,
// and keeps no state.
//
// # Protocol
//
// A request is a JSON object without unknown fields, a POST; only the list has no input and is a GET. The answer is 200 and
// a JSON object, or else the status and the Error of the one table in this package.
//
//	GET  /v1/images          ListResponse
//	POST /v1/images/inspect  InspectRequest → Image
//	POST /v1/images/remove   RemoveRequest → RemoveResponse
//	POST /v1/images/tag      TagRequest → Image
//	POST /v1/images/explain  ExplainRequest → any object
//	POST /v1/images/pull     PullRequest → events, PullResponse
//	POST /v1/images/push     PushRequest → events, PushResponse
//	POST /v1/images/commit   CommitRequest → events, Image
//	POST /v1/images/check    CheckRequest → events, CheckResponse
//	POST /v1/images/import   an archive (query: name) → events, ImportResponse
//	POST /v1/images/export   ExportRequest → an archive
//
// Events are lines, each a JSON Event. The last one has the result or the error; an answer without it was cut off. An
// operation that fails before there is an event answers as the short ones do. Import's events come while the archive is
// still being sent. An archive is followed by the HTTP trailer X-Error, an Error in JSON whose code is empty if all is
// well; without the trailer the archive was cut off. A client that closes the connection cancels its operation.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

// Limits of the server.
const (
	maxRequest      = 1 << 20 // bytes of a JSON request
	maxHeader       = 16 << 10
	headerTimeout   = 10 * time.Second
	idleTimeout     = time.Minute
	requestPatience = 10 * time.Second // between two pieces of a JSON request
	archivePatience = 5 * time.Minute  // between two pieces of an archive: another program may be making it
	progressPeriod  = 200 * time.Millisecond
	cancelledLinger = 5 * time.Second // for operations to end after they have been cancelled
	thawLimit       = 30 * time.Second
)

// Server answers administrators.
type Server struct {
	b        Backends
	http     *http.Server
	progress time.Duration           // between events
	patience time.Duration           // between two pieces of an archive
	cancel   context.CancelCauseFunc // ends all operations
}

// NewServer makes a server. Serve starts it, and Stop ends it.
func NewServer(b Backends) *Server {
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &Server{b: b, progress: progressPeriod, patience: archivePatience, cancel: cancel}
	s.http = &http.Server{
		Handler: s.routes(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    log.New(debugLog{}, "", 0),
	}
	return s
}

// Serve answers on the listener, which it closes, until Stop; it then returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Stop takes no more requests and waits for those under way until ctx ends; then it cancels them. No request is at work
// when it returns nil.
func (s *Server) Stop(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	s.cancel(ErrStopping)
	if err == nil {
		return nil
	}
	linger, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*cancelledLinger)
	defer cancel()
	if err := s.http.Shutdown(linger); err != nil {
		return fmt.Errorf("operations of administrators do not end: %w", errors.Join(err, s.http.Close()))
	}
	return nil
}

// debugLog takes what net/http has to say of its clients.
type debugLog struct{}

func (debugLog) Write(line []byte) (int, error) {
	logrus.WithField("server", "admin").Debug(strings.TrimSpace(string(line)))
	return len(line), nil
}
