package cri

import (
	"math"
	"time"
)

// seconds is a time that a request gives in seconds. A negative one is none; one that a time.Duration cannot hold, 292 years, is the
// longest that it can.
func seconds(n int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Second)
	return time.Duration(min(max(n, 0), most)) * time.Second
}
