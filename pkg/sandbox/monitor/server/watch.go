package server

import (
	"context"
	"net"

	"criserver/pkg/sandbox/monitor"
)

// watcher is a client that follows the containers. It holds the IDs that changed and not the changes: a slow client
// sees the newest state of each container and costs no more than their number.
type watcher struct {
	dirty map[string]struct{} // guarded by Server.mu
	wake  chan struct{}
}

// changed tells the watchers that a container's state is new, or that it is no more.
func (s *Server) changed(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		w.dirty[id] = struct{}{}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (s *Server) watch(ctx context.Context, conn *net.UnixConn) {
	w := &watcher{dirty: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	for id := range s.containers {
		w.dirty[id] = struct{}{}
	}
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	closed := make(chan struct{})
	go func() { // the client sends nothing more: a read ends when it hangs up
		var b [1]byte
		_, _ = conn.Read(b[:])
		close(closed)
	}()
	reply(conn, nil, nil)
	if !s.sendDirty(conn, w) || monitor.WriteFrame(conn, monitor.Event{Synced: true}) != nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-closed:
			return
		case <-w.wake:
			if !s.sendDirty(conn, w) {
				return
			}
		}
	}
}

// sendDirty sends the state of each changed container; false means that the client is gone.
func (s *Server) sendDirty(conn *net.UnixConn, w *watcher) bool {
	s.mu.Lock()
	dirty := w.dirty
	w.dirty = map[string]struct{}{}
	s.mu.Unlock()
	for id := range dirty {
		event := monitor.Event{Removed: id}
		if c, err := s.lookup(id); err == nil {
			st := c.snapshot()
			if st.Phase == "" {
				continue // being created: its state comes when there is one
			}
			event = monitor.Event{State: &st}
		}
		if err := monitor.WriteFrame(conn, event); err != nil {
			return false
		}
	}
	return true
}
