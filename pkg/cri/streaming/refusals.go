package streaming

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"
)

// refusal is why a client gets no session.
type refusal string

const (
	refusedToken  refusal = "its token is unknown, used, or too old"
	refusedMethod refusal = "its method is neither GET nor POST"
	refusedPath   refusal = "there is no such endpoint"
	refusedSlow   refusal = "it has not said in time what it wants"
	refusedTLS    refusal = "its TLS handshake failed"
	refusedFull   refusal = "there are too many connections; it has to wait"
)

const (
	// refusedFirst lines of each refusal are logged as they come, and then one in refusedEvery: strangers must not fill the disk.
	refusedFirst = 10
	refusedEvery = time.Minute
)

// refusals logs, without ever saying much, whom the server refuses.
type refusals struct {
	mu    sync.Mutex
	kinds map[refusal]*refusalLines
}

type refusalLines struct {
	turn   rate.Sometimes
	unsaid int
}

// log says that a client was refused. why adds to the reason; it may be nil.
func (r *refusals) log(reason refusal, client string, why any) {
	say, others := r.turn(reason)
	if !say {
		return
	}
	entry := logrus.WithField("client", client)
	if why != nil {
		entry = entry.WithField("why", why)
	}
	if others > 0 {
		entry = entry.WithField("others", others)
	}
	entry.Warnf("refused a streaming client: %s", reason)
}

// turn tells whether a refusal is to be logged, and how many of its kind were not since the last one that was.
func (r *refusals) turn(reason refusal) (say bool, others int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.kinds[reason]
	if lines == nil {
		lines = &refusalLines{turn: rate.Sometimes{First: refusedFirst, Interval: refusedEvery}}
		if r.kinds == nil {
			r.kinds = map[refusal]*refusalLines{}
		}
		r.kinds[reason] = lines
	}
	lines.turn.Do(func() { say = true })
	if !say {
		lines.unsaid++
		return false, 0
	}
	others, lines.unsaid = lines.unsaid, 0
	return true, others
}

// refuse answers a request.
func (r *refusals) refuse(w http.ResponseWriter, req *http.Request, reason refusal, code int) {
	r.log(reason, req.RemoteAddr, req.Method)
	http.Error(w, http.StatusText(code), code)
}

// Write takes what the HTTP server says of its clients, which has no other way to tell of a handshake: net/http's Server.ErrorLog.
func (r *refusals) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if rest, ok := strings.CutPrefix(text, "http: TLS handshake error from "); ok {
		client, why, _ := strings.Cut(rest, ": ")
		r.log(refusedTLS, client, why)
	} else {
		logrus.Debug(text)
	}
	return len(line), nil
}
