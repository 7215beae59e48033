package streaming

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// conn tells by a context when its client has gone: the library reads from a connection all the time, but tells nobody.
type conn struct {
	net.Conn
	once sync.Once
	gone context.CancelFunc
	// asked tells that a request has come, slow is called when none comes in time.
	asked atomic.Bool
	slow  func(client string)
	// taken tells that it is the library's, and no more of the HTTP server.
	taken atomic.Bool
	// leave gives its place to another one.
	leave func()
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	switch {
	case err == nil:
	case !isTimeout(err):
		c.once.Do(c.gone)
	case !c.asked.Swap(true):
		c.slow(c.RemoteAddr().String())
	}
	return n, err
}

func (c *conn) Close() error {
	c.once.Do(c.gone)
	c.leave()
	return c.Conn.Close()
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error) //nolint:errorlint // what the connection itself returns
	return ok && t.Timeout()
}

// listener makes such connections, as many at one time as it has places. Others wait, unanswered.
type listener struct {
	net.Listener
	refused *refusals
	places  chan struct{}
	closed  chan struct{}
	once    sync.Once
}

func newListener(l net.Listener, places int, r *refusals) *listener {
	return &listener{Listener: l, refused: r, places: make(chan struct{}, places), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	select {
	case l.places <- struct{}{}:
	default:
		l.refused.log(refusedFull, c.RemoteAddr().String(), nil)
		select {
		case l.places <- struct{}{}:
		case <-l.closed:
			_ = c.Close()
			return nil, net.ErrClosed
		}
	}
	return &conn{
		Conn: c, gone: func() {}, leave: sync.OnceFunc(func() { <-l.places }),
		slow: func(client string) { l.refused.log(refusedSlow, client, nil) },
	}, nil
}

// Close implements net.Listener. Connections go on.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type connKey struct{}

// own returns the connection that is ours: below TLS it is the transport. It may be nil.
func own(c net.Conn) *conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	o, _ := c.(*conn)
	return o
}

// withConn is http.Server.ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	o := own(c)
	if o == nil {
		return ctx
	}
	ctx, o.gone = context.WithCancel(ctx)
	return context.WithValue(ctx, connKey{}, o)
}

// connState is http.Server.ConnState.
func connState(c net.Conn, state http.ConnState) {
	if o := own(c); o != nil && state == http.StateHijacked {
		o.taken.Store(true)
	}
}

// hasAsked says that a request has come by a connection.
func hasAsked(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		c.asked.Store(true)
	}
}

// hangUp ends the connection that a request came by: somebody does not read, and nothing more can be said.
func hangUp(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		_ = c.Close()
	}
}

// giveUp ends the connection of a client that has not opened its streams in time: the library leaves it open.
func giveUp(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok && c.taken.Load() {
		_ = c.Close()
	}
}
