package streaming

import (
	"context"
	"io"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Paths of the endpoints, before the token.
const (
	pathExec        = "/exec/"
	pathAttach      = "/attach/"
	pathPortForward = "/portforward/"
)

// path is the endpoint for an operation; "" for none.
func (o Operation) path() string {
	switch {
	case o.Exec != nil && o.Exec.Process != nil:
		return pathExec
	case o.Attach != nil:
		return pathAttach
	case o.PortForward != nil:
		return pathPortForward
	}
	return ""
}

// endpoints are what clients see.
func (s *Server) endpoints() http.Handler {
	mux := http.NewServeMux()
	for path, serve := range map[string]func(http.ResponseWriter, *http.Request, Operation){
		pathExec: s.serveExec, pathAttach: s.serveAttach, pathPortForward: s.servePortForward,
	} {
		mux.HandleFunc(path+"{token}", func(w http.ResponseWriter, r *http.Request) {
			defer s.session()()
			if r.Method != http.MethodPost && r.Method != http.MethodGet { // SPDY clients POST, WebSocket clients GET
				w.Header().Set("Allow", "GET, POST")
				s.refused.refuse(w, r, refusedMethod, http.StatusMethodNotAllowed)
				return
			}
			op, ok := s.tokens.take(r.PathValue("token"), time.Now())
			if !ok || op.path() != path {
				s.refused.refuse(w, r, refusedToken, http.StatusNotFound)
				return
			}
			serve(w, r, op)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.refused.refuse(w, r, refusedPath, http.StatusNotFound) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hasAsked(r.Context())
		mux.ServeHTTP(w, r)
	})
}

// session counts one in; the function that it returns counts it out.
func (s *Server) session() (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions++
	return func() {
		s.mu.Lock()
		s.sessions--
		s.used = time.Now()
		s.mu.Unlock()
		s.look()
	}
}

// command is a session of exec or attach: what the library calls, and what the WebSocket handler does.
type command func(ctx context.Context, s streams) error

// ExecInContainer implements remotecommand.Executor.
func (c command) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return c(ctx, streams{in, writer(out), writer(errOut), resize})
}

// AttachContainer implements remotecommand.Attacher.
func (c command) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return c(ctx, streams{in, writer(out), writer(errOut), resize})
}

// writer keeps a nil one nil.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

func (s Streams) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, TTY: s.TTY}
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, op Operation) {
	run := func(ctx context.Context, io streams) error { return s.runtime.exec(ctx, *op.Exec, io) }
	s.serveCommand(w, r, op.Exec.Streams, run, func(run command) {
		remotecommand.ServeExec(w, r, run, "", "", op.Exec.Container, op.Exec.Process.Args, op.Exec.options(),
			s.settings.Idle, s.settings.Creation, remotecommand.SupportedStreamingProtocols)
	})
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, op Operation) {
	run := func(ctx context.Context, io streams) error { return s.runtime.attach(ctx, *op.Attach, io) }
	s.serveCommand(w, r, op.Attach.Streams, run, func(run command) {
		remotecommand.ServeAttach(w, r, run, "", "", op.Attach.Container, op.Attach.options(),
			s.settings.Idle, s.settings.Creation, remotecommand.SupportedStreamingProtocols)
	})
}

// serveCommand serves a session of run: by WebSocket, or else by the library.
func (s *Server) serveCommand(w http.ResponseWriter, r *http.Request, io Streams, run command, byLibrary func(command)) {
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveWebSocket(w, r, io, run)
		return
	}
	ran := false
	byLibrary(func(ctx context.Context, io streams) error {
		ran = true
		return run(ctx, io)
	})
	if !ran {
		giveUp(r.Context())
	}
}

// forwarder implements portforward.PortForwarder for one session.
type forwarder func(port int32, stream io.ReadWriteCloser) error

// PortForward implements portforward.PortForwarder. The library's context is no session's: it never ends.
func (f forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	return f(port, stream)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, op Operation) {
	options, err := portforward.BuildV4Options(op.PortForward.Ports)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	serve := func(w http.ResponseWriter, r *http.Request) {
		session := forwarder(func(port int32, stream io.ReadWriteCloser) error {
			return forward(r.Context(), *op.PortForward, port, stream, halfOpen)
		})
		portforward.ServePortForward(w, r, session, op.PortForward.Pod, "", options,
			s.settings.Idle, s.settings.Creation, portforward.SupportedProtocols)
	}
	if isTunnel(r) {
		serveTunnel(w, r, serve)
		return
	}
	serve(w, r)
}
