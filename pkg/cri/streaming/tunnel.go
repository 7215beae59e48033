package streaming

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// tunnelProtocol is what clients of today forward ports by: a WebSocket whose messages are the bytes of a SPDY connection (KEP-4006).
// The library has SPDY, and a WebSocket protocol of its own that these clients do not speak.
const tunnelProtocol = "SPDY/3.1+" + portforward.ProtocolV1Name

// isTunnel tells whether a client wants that.
func isTunnel(r *http.Request) bool {
	return slices.ContainsFunc(strings.Split(r.Header.Get("Sec-WebSocket-Protocol"), ","), func(p string) bool {
		return strings.TrimSpace(p) == tunnelProtocol
	})
}

// serveTunnel calls serve, which upgrades to SPDY, with a connection that is a WebSocket.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	server := websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			c.Protocol = []string{tunnelProtocol}
			return nil
		},
		Handler: func(conn *websocket.Conn) {
			conn.PayloadType = websocket.BinaryFrame
			// The deadlines are the HTTP server's, for requests.
			if err := conn.SetDeadline(time.Time{}); err != nil {
				logrus.WithError(err).WithField("client", r.RemoteAddr).Warn("refused a WebSocket")
				return
			}
			inner := r.Clone(r.Context())
			inner.Method = http.MethodPost
			inner.Header = http.Header{}
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			t := &tunnel{conn: conn, header: http.Header{}}
			serve(t, inner)
			if !t.taken {
				logrus.WithField("client", r.RemoteAddr).Warnf("a port-forward by WebSocket failed: %s", &t.said)
			}
		},
	}
	server.ServeHTTP(w, r)
}

// tunnel is the response of a request that upgrades: nobody reads its header, and its connection is the WebSocket.
type tunnel struct {
	conn   net.Conn
	header http.Header
	said   strings.Builder
	taken  bool
}

// Header implements http.ResponseWriter.
func (t *tunnel) Header() http.Header { return t.header }

// Write implements http.ResponseWriter, for errors.
func (t *tunnel) Write(p []byte) (int, error) { return t.said.Write(p) }

// WriteHeader implements http.ResponseWriter.
func (t *tunnel) WriteHeader(int) {}

// Hijack implements http.Hijacker.
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if t.taken {
		return nil, nil, errors.New("the connection is taken")
	}
	t.taken = true
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
