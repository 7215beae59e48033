package streaming

import (
	"context"
	"net"
	"sync"
)

// conn tells by a context when its client has gone: the library reads from a connection all the time, but tells nobody.
type conn struct {
	net.Conn
	once sync.Once
	gone context.CancelFunc
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !isTimeout(err) {
		c.once.Do(c.gone)
	}
	return n, err
}

func (c *conn) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close()
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error) //nolint:errorlint // what the connection itself returns
	return ok && t.Timeout()
}

// listener makes such connections.
type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, gone: func() {}}, nil
}

type connKey struct{}

// withConn is http.Server.ConnContext. Below TLS the connection is not ours; the one that is ours is its transport.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	own, ok := c.(*conn)
	if !ok {
		return ctx
	}
	ctx, own.gone = context.WithCancel(ctx)
	return context.WithValue(ctx, connKey{}, own)
}

// hangUp ends the connection that a request came by: somebody does not read, and nothing more can be said.
func hangUp(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		_ = c.Close()
	}
}
