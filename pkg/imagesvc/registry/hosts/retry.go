package hosts

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// MaxRetries is how often a request is repeated.
const MaxRetries = 4

// MaxBackoff is the longest wait between two repetitions that is not at the server's wish.
const MaxBackoff = 10 * time.Second

const (
	// maxRetryAfter is how long in all one request waits at a server's wish. What wants more has no time for this pull:
	// another endpoint is asked.
	maxRetryAfter = time.Minute
	// jitter is the part of a wait that is left to chance, so that nodes that failed together do not come back together. A
	// server's wish is not cut short by it.
	jitter = 0.2
)

// Backoff is how long to wait before something is done once more, for the first time with attempt 0: first, doubled each time, at
// most MaxBackoff, and a fifth less or more.
func Backoff(first time.Duration, attempt int) time.Duration {
	wait := MaxBackoff
	if attempt < 32 && first <= MaxBackoff>>attempt { // else it would overflow
		wait = first << attempt
	}
	return wait + time.Duration((rand.Float64()*2-1)*jitter*float64(wait)) //nolint:gosec // no secret
}

// Retries decides on the repetition of one request, as retry.Policy of oras-go. That library's own policy does what the
// server wishes for status 429 only, in seconds only, and less than that if it is longer than its longest wait.
type Retries struct {
	// Backoff is the wait before the first repetition; it doubles each time.
	Backoff time.Duration

	waited time.Duration // at the server's wish
}

// Retry returns how long to wait before the request is made again; negative: it is not.
func (r *Retries) Retry(attempt int, resp *http.Response, err error) (time.Duration, error) {
	if attempt >= MaxRetries || !WorthRetrying(resp, err) {
		return -1, nil
	}
	wait := Backoff(r.Backoff, attempt)
	if wish, ok := retryAfter(resp); ok {
		if r.waited += wish; r.waited > maxRetryAfter {
			return -1, nil
		}
		wait = max(wait, wish+time.Duration(rand.Float64()*jitter*float64(wish))) //nolint:gosec // no secret
	}
	return wait, nil
}

// WorthRetrying leaves out what another endpoint should answer rather than the same one a second later: refused
// connections, wrong certificates, timeouts.
func WorthRetrying(resp *http.Response, err error) bool {
	if err != nil {
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
			errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter is what the server wishes (RFC 9110, 10.2.3): seconds, or a date.
func retryAfter(resp *http.Response) (time.Duration, bool) {
	if resp == nil || resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0, false
	}
	value := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second, true
	}
	when, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	now := time.Now()
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		now = date // by the server's clock
	}
	return max(when.Sub(now), 0), true
}
