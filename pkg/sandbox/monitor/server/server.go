// Package server is the inside of crimonitor: it makes containers by a runtime, reaps them, writes their logs and
// answers the calls of package monitor.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/oom"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/runtime"
)

// Runtimes tells which runtime a container has; see oci.Set for the contracts.
type Runtimes interface {
	Assign(id, bundle string, c *runtime.Command) (runtime.Runtime, error)
	Of(id string) (runtime.Runtime, error)
}

// Server holds the containers of a node.
type Server struct {
	runtimes Runtimes
	version  string
	// resident refuses every shutdown.
	resident bool
	// stop ends Serve.
	stop context.CancelFunc

	mu         sync.Mutex
	containers map[string]*container
	watchers   map[*watcher]struct{}
	children   children
	// ooms watches the cgroups that are systemd's, once there is one.
	ooms func() (*oom.Watcher, error)
}

// New returns a server without containers. version is the program's, for Info. A resident server is somebody else's to
// end, such as a service manager's: it grants no shutdown.
func New(runtimes Runtimes, version string, resident bool) *Server {
	return &Server{
		runtimes:   runtimes,
		version:    version,
		resident:   resident,
		containers: map[string]*container{},
		watchers:   map[*watcher]struct{}{},
		children:   children{owned: map[int]struct{}{}},
		ooms:       sync.OnceValues(oom.NewWatcher),
	}
}

// Serve answers calls on the listener, and reaps orphaned processes, until ctx ends or a client asks for a shutdown
// that can be granted. It does not end the containers.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.stop = cancel
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	go s.children.reapOrphans(ctx)
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go s.handle(ctx, conn)
	}
}

func (s *Server) handle(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	if err := checkPeer(conn); err != nil {
		logrus.WithError(err).Warn("refused a connection")
		return
	}
	var req monitor.Request
	files, err := monitor.ReadFrame(conn, &req)
	if err != nil {
		logrus.WithError(err).Debug("no request came")
		return
	}
	defer monitor.CloseFiles(files)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if req.Protocol != monitor.Protocol {
		reply(conn, nil, fmt.Errorf("%w: the client speaks %d, this crimonitor (version %s, pid %d) speaks %d: "+
			"use a criserver of its version, or drain the node and restart crimonitor",
			monitor.ErrProtocol, req.Protocol, s.version, os.Getpid(), monitor.Protocol))
		return
	}
	if req.Method == monitor.MethodWatch {
		s.watch(ctx, conn)
		return
	}
	if req.Method == monitor.MethodAttach { // it reads what the client sends
		_, err := with(req, func(p monitor.AttachRequest) (any, error) { return nil, s.attach(ctx, conn, p, files) })
		if err != nil {
			reply(conn, nil, err)
		}
		return
	}
	// A client that hangs up cancels its call; it sends nothing after its request.
	go func() {
		var b [1]byte
		_, _ = conn.Read(b[:])
		cancel()
	}()
	result, err := s.dispatch(ctx, req, files)
	reply(conn, result, err)
	if req.Method == monitor.MethodShutdown && err == nil {
		s.stop()
	}
}

// checkPeer lets only root in, whatever the mode of the socket became.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return fmt.Errorf("read peer credentials: %w", err)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("uid %d is not root", cred.Uid)
	}
	return nil
}

func (s *Server) dispatch(ctx context.Context, req monitor.Request, files []*os.File) (any, error) {
	switch req.Method {
	case monitor.MethodInfo:
		return monitor.Info{PID: os.Getpid(), Version: s.version, Protocol: monitor.Protocol}, nil
	case monitor.MethodShutdown:
		return nil, s.shutdown()
	case monitor.MethodCreate:
		return with(req, func(p monitor.CreateRequest) (any, error) { return s.create(ctx, p, nil) })
	case monitor.MethodRestore:
		return with(req, func(p monitor.RestoreRequest) (any, error) { return s.create(ctx, p.CreateRequest, &p.From) })
	case monitor.MethodStart:
		return with(req, func(p monitor.IDRequest) (any, error) { return s.start(ctx, p.ID) })
	case monitor.MethodSignal:
		return with(req, func(p monitor.SignalRequest) (any, error) { return nil, s.signal(ctx, p) })
	case monitor.MethodExec:
		return with(req, func(p monitor.ExecRequest) (any, error) { return s.exec(ctx, p, files) })
	case monitor.MethodReopen:
		return with(req, func(p monitor.IDRequest) (any, error) { return nil, s.reopen(p.ID) })
	case monitor.MethodDump:
		return with(req, func(p monitor.DumpRequest) (any, error) { return nil, s.dump(ctx, p) })
	case monitor.MethodDelete:
		return with(req, func(p monitor.IDRequest) (any, error) { return nil, s.delete(ctx, p) })
	}
	return nil, fmt.Errorf("unknown method %q", req.Method)
}

func with[P any](req monitor.Request, fn func(P) (any, error)) (any, error) {
	var p P
	if err := json.Unmarshal(req.Params, &p); err != nil {
		return nil, fmt.Errorf("decode %s parameters: %w", req.Method, err)
	}
	return fn(p)
}

func reply(conn *net.UnixConn, result any, err error) {
	if err != nil {
		err = monitor.WriteFrame(conn, monitor.Response{Code: monitor.Code(err), Message: err.Error()})
	} else {
		err = replyWith(conn, result, nil)
	}
	if err != nil {
		logrus.WithError(err).Debug("the client has gone before its answer")
	}
}

// replyWith answers with a result, and files, which stay the caller's.
func replyWith(conn *net.UnixConn, result any, files []*os.File) error {
	var resp monitor.Response
	if result != nil {
		raw, err := json.Marshal(result)
		if err != nil {
			return fmt.Errorf("encode result: %w", err)
		}
		resp.Result = raw
	}
	return monitor.WriteFrame(conn, resp, files...)
}

// shutdown refuses while a container exists, since its log and exit code would be lost.
func (s *Server) shutdown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resident {
		return fmt.Errorf("its service manager ends it: %w", monitor.ErrBusy)
	}
	if n := len(s.containers); n > 0 {
		return fmt.Errorf("it has %d containers: %w", n, monitor.ErrBusy)
	}
	return nil
}
