package streaming

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	goruntime "runtime"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/monitor"
)

const (
	// headerLimit is how long a client may take to say what it wants, and stay without saying more; maxHeader how much it
	// may say. A session has taken its connection over, and is not bound by it.
	headerLimit = 10 * time.Second
	maxHeader   = 16 << 10
	// drainPending is how long a client has to use its URL when the server is to end.
	drainPending = 2 * time.Second
	drainPoll    = 10 * time.Millisecond
	// maxConnections bounds the connections at one time: the tokens are 1,000, and each session is one connection.
	maxConnections = 4000
	// idleCheck is how often it is looked whether there is anything left to do.
	idleCheck = time.Second
	// maxOperation is how large an operation may be, in bytes: that of a gRPC message.
	maxOperation = 16 << 20
)

// Server is the process of the sessions. Run is its life.
type Server struct {
	settings Settings
	runtime  *runtime
	scheme   string
	address  string
	tokens   tokens
	refused  refusals
	clients  net.Listener
	control  net.Listener

	mu       sync.Mutex
	sessions int
	used     time.Time // when something was last asked for or ended
	draining bool
	wake     chan struct{} // capacity 1: it is to be looked at once
	quiet    chan struct{} // closed when there is nothing to do any more
	ended    bool
}

// NewServer listens on the address for clients and on the control socket for the daemon.
func NewServer(s Settings) (*Server, error) {
	srv := &Server{settings: s, scheme: "http", runtime: &runtime{monitor: monitor.NewClient(s.Monitor), grace: s.Grace}, used: time.Now(), wake: make(chan struct{}, 1), quiet: make(chan struct{})}
	tlsConfig, err := s.TLS.config(s.Address)
	if err != nil {
		return nil, err
	}
	if srv.clients, err = net.Listen("tcp", net.JoinHostPort(s.Address, strconv.Itoa(s.Port))); err != nil {
		return nil, fmt.Errorf("listen for streaming clients: %w", err)
	}
	if tlsConfig != nil {
		srv.scheme = "https"
	}
	srv.address = reachable(srv.clients.Addr())
	srv.clients = newListener(srv.clients, maxConnections, &srv.refused)
	if tlsConfig != nil {
		srv.clients = tls.NewListener(srv.clients, tlsConfig)
	}
	// Who is there already drains, or is dead.
	if err := os.Remove(s.Control); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("clear control socket: %w", err), srv.clients.Close())
	}
	if srv.control, err = net.Listen("unix", s.Control); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on control socket: %w", err), srv.clients.Close())
	}
	if err := os.Chmod(s.Control, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("close control socket to others: %w", err), srv.clients.Close(), srv.control.Close())
	}
	return srv, nil
}

// reachable is the address for those on this machine.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	host := "127.0.0.1" // "::" takes IPv4 too
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// Run serves until ctx ends, or until there has been nothing to do for Settings.Linger.
func (s *Server) Run(ctx context.Context) error {
	clients := &http.Server{
		Handler: s.endpoints(), ReadTimeout: headerLimit, MaxHeaderBytes: maxHeader, ConnContext: withConn, ConnState: connState,
		TLSNextProto: noHTTP2(), ErrorLog: log.New(&s.refused, "", 0),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", s.serveInfo)
	mux.HandleFunc("POST /operations", s.serveOperation)
	mux.HandleFunc("POST /drain", s.serveDrain)
	control := &http.Server{Handler: mux, ReadHeaderTimeout: headerLimit}
	failed := make(chan error, 2)
	go func() { failed <- clients.Serve(s.clients) }()
	go func() { failed <- control.Serve(s.control) }()
	logrus.WithFields(logrus.Fields{"address": s.clients.Addr(), "version": s.settings.Version, "pid": os.Getpid()}).Info("stream server serves")
	go s.watch(ctx)
	var err error
	select {
	case <-ctx.Done():
	case <-s.quiet:
	case err = <-failed:
		if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) { // it drains
			err = nil
			select {
			case <-ctx.Done():
			case <-s.quiet:
			}
		}
	}
	logrus.Info("stream server ends")
	return errors.Join(err, control.Close(), clients.Close())
}

// watch notices when there is nothing to do.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(idleCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.wake:
		}
		s.mu.Lock()
		if s.idle(time.Now()) {
			s.ended = true
			close(s.quiet)
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

// idle tells whether there is nothing to do, and nothing to be expected. The caller holds the lock.
func (s *Server) idle(now time.Time) bool {
	if s.sessions > 0 {
		return false
	}
	if s.draining {
		return s.tokens.younger(drainPending, now) == 0
	}
	return now.Sub(s.used) > s.settings.Linger && s.tokens.younger(tokenLife, now) == 0
}

// Info tells who answers on a control socket, and what it is busy with.
type Info struct {
	Settings   Settings
	PID        int
	Sessions   int
	Goroutines int
}

func (s *Server) serveInfo(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	sessions := s.sessions
	s.mu.Unlock()
	answer(w, Info{Settings: s.settings, PID: os.Getpid(), Sessions: sessions, Goroutines: goruntime.NumGoroutine()})
}

func (s *Server) serveOperation(w http.ResponseWriter, r *http.Request) {
	var op Operation
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOperation)).Decode(&op); err != nil {
		http.Error(w, "decode operation: "+err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	gone := s.ended || s.draining
	s.used = time.Now()
	s.mu.Unlock()
	if gone {
		http.Error(w, "it takes no more sessions", http.StatusServiceUnavailable)
		return
	}
	path := op.path()
	if path == "" {
		http.Error(w, "the operation is empty", http.StatusBadRequest)
		return
	}
	token, err := s.tokens.issue(op, time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	}
	answer(w, (&url.URL{Scheme: s.scheme, Host: s.address, Path: path + token}).String())
}

// serveDrain gives the address and the control socket up for a successor; open sessions go on.
func (s *Server) serveDrain(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	first := !s.draining
	s.draining = true
	s.mu.Unlock()
	// Who has just got a URL may use it: a successor with the same port could not serve it.
	for end := time.Now().Add(drainPending); time.Now().Before(end) && s.tokens.younger(drainPending, time.Now()) > 0; {
		time.Sleep(drainPoll)
	}
	if first {
		_ = s.clients.Close()
		_ = s.control.Close() // which removes the socket
	}
	s.mu.Lock()
	ends := s.idle(time.Now())
	s.mu.Unlock()
	logrus.Info("stream server drains")
	answer(w, ends)
	s.look()
}

// look has it looked at once whether there is anything left to do.
func (s *Server) look() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		logrus.WithError(err).Debug("the daemon has gone before its answer")
	}
}
