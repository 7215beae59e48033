package hosts

import (
	"errors"
	"math"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// spread calls fn often, fails where a value is out of bounds, and tells how far apart the values are.
func spread(t *testing.T, from, to time.Duration, fn func() time.Duration) time.Duration {
	t.Helper()
	least, most := time.Duration(math.MaxInt64), time.Duration(0)
	for range 2000 {
		v := fn()
		if v < from || v > to {
			t.Fatalf("waits %v, want %v to %v", v, from, to)
		}
		least, most = min(least, v), max(most, v)
	}
	return most - least
}

// Nodes that failed together do not come back together, and no wait is out of bounds, however often it was tried.
func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{
		0: 250 * time.Millisecond, 1: 500 * time.Millisecond, 4: 4 * time.Second, 6: MaxBackoff, 40: MaxBackoff, 1000: MaxBackoff,
	} {
		from, to := want*4/5, want*6/5
		if got := spread(t, from, to, func() time.Duration { return Backoff(250*time.Millisecond, attempt) }); got < (to-from)*9/10 {
			t.Errorf("attempt %d: 2000 waits are within %v of each other", attempt, got)
		}
	}
}

func TestRetry(t *testing.T) {
	answer := func(code int, retryAfter string) *http.Response {
		return &http.Response{StatusCode: code, Header: http.Header{"Retry-After": {retryAfter}}}
	}
	const backoff = time.Second
	for name, test := range map[string]struct {
		attempt  int
		resp     *http.Response
		err      error
		from, to time.Duration // -1: not at all
	}{
		"500":            {0, answer(500, "30"), nil, backoff * 4 / 5, backoff * 6 / 5},
		"second":         {1, answer(502, ""), nil, backoff * 8 / 5, backoff * 12 / 5},
		"reset":          {0, nil, syscall.ECONNRESET, backoff * 4 / 5, backoff * 6 / 5},
		"refused":        {0, nil, syscall.ECONNREFUSED, -1, -1},
		"404":            {0, answer(404, "1"), nil, -1, -1},
		"too often":      {MaxRetries, answer(500, ""), nil, -1, -1},
		"429":            {0, answer(429, "30"), nil, 30 * time.Second, 36 * time.Second},
		"503":            {0, answer(503, "30"), nil, 30 * time.Second, 36 * time.Second},
		"a short wish":   {1, answer(429, "1"), nil, backoff * 8 / 5, backoff * 12 / 5},
		"a wish for now": {0, answer(429, "0"), nil, backoff * 4 / 5, backoff * 6 / 5},
		"a long wish":    {0, answer(429, "61"), nil, -1, -1},
	} {
		t.Run(name, func(t *testing.T) {
			got := spread(t, test.from, test.to, func() time.Duration {
				wait, err := (&Retries{Backoff: backoff}).Retry(test.attempt, test.resp, test.err)
				if err != nil {
					t.Fatal(err)
				}
				return wait
			})
			if want := (test.to - test.from) * 9 / 10; got < want {
				t.Errorf("2000 waits are within %v of each other", got)
			}
		})
	}
	// All wishes of a request have one limit.
	r := &Retries{Backoff: backoff}
	var waits []time.Duration
	for attempt := range 3 {
		wait, err := r.Retry(attempt, answer(429, "25"), nil)
		if err != nil {
			t.Fatal(err)
		}
		waits = append(waits, wait)
	}
	if waits[0] < 25*time.Second || waits[1] < 25*time.Second || waits[2] >= 0 {
		t.Errorf("waits %v", waits)
	}
	if WorthRetrying(nil, errors.New("x509: certificate signed by unknown authority")) {
		t.Error("a wrong certificate is asked for again")
	}
}
