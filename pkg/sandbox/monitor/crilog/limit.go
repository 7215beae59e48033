package crilog

import "time"

// limit is a token bucket for the content of entries. The zero value lets all pass.
type limit struct {
	rate, burst, tokens int64 // bytes a second, bytes
	last                time.Time
	untold              int64 // dropped bytes that no notice has told yet
}

// Limit has entries dropped, whole, that are more than rate bytes a second after a burst; a rate of 0 is no limit. A
// burst has room for one entry at least. To be called before the first Write.
func (l *Log) Limit(rate, burst int64) {
	burst = max(burst, MaxLine)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit = limit{rate: rate, burst: burst, tokens: burst}
}

func (b *limit) refill(at time.Time) {
	if b.rate <= 0 {
		return
	}
	if b.last.IsZero() {
		b.last = at
	}
	passed := at.Sub(b.last)
	if passed <= 0 { // two streams' times may cross
		return
	}
	// In floating point: a long time and a high rate are more than 64 bits of byte-nanoseconds.
	gained := int64(min(passed.Seconds()*float64(b.rate), float64(b.burst)))
	if gained > 0 { // else the fraction of a byte is left to the next time
		b.tokens, b.last = min(b.tokens+gained, b.burst), at
	}
}

// admit appends an entry, or drops it. An entry without content costs a byte: empty lines fill a disk too.
func (l *Log) admit(out, head []byte, tag byte, tail, rest []byte) []byte {
	if l.limit.rate > 0 {
		n := int64(len(tail) + len(rest))
		cost := max(n, 1)
		if l.limit.tokens < cost {
			l.dropped.Add(n)
			l.limit.untold += n
			return out
		}
		l.limit.tokens -= cost
	}
	return entry(out, head, tag, tail, rest)
}
