package snapshot

import (
	"testing"
	"time"
)

func TestMeasurementAdd(t *testing.T) {
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	for _, tc := range []struct{ a, b, want time.Time }{
		{early, late, early}, {late, early, early}, {early, time.Time{}, early}, {time.Time{}, early, early}, {},
	} {
		sum := Measurement{Usage: Usage{Bytes: 1, Inodes: 2}, Measured: tc.a}.Add(
			Measurement{Usage: Usage{Bytes: 10, Inodes: 20}, Measured: tc.b})
		if sum.Measured != tc.want || sum.Bytes != 11 || sum.Inodes != 22 {
			t.Errorf("%v and %v: %+v", tc.a, tc.b, sum)
		}
	}
}
