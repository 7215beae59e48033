package cri

import (
	"math"
	"testing"
	"time"
)

func TestSeconds(t *testing.T) {
	const most = 9223372036 * time.Second
	for n, want := range map[int64]time.Duration{
		0: 0, 1: time.Second, -1: 0, -9223372037: 0, math.MinInt64: 0,
		9223372036: most, 9223372037: most, 18446744074: most, math.MaxInt64: most,
	} {
		if got := seconds(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
