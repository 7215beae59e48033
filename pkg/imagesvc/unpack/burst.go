package unpack

import (
	"runtime/debug"
	"sync"
)

// burstPercent is GOGC while layers are unpacked. By default, half of the heap may be garbage; most of the live half is windows
// and tables without pointers then, which cost nothing to mark, so that collecting oftener costs little and saves their size
// again.
const burstPercent = 25

// bursts counts the layers that are being unpacked in this process.
var bursts struct {
	mu     sync.Mutex
	count  int
	before int
}

// burst begins unpacking; the function that it returns ends it.
func burst() func() {
	bursts.mu.Lock()
	defer bursts.mu.Unlock()
	if bursts.count++; bursts.count == 1 {
		bursts.before = debug.SetGCPercent(burstPercent)
		if bursts.before >= 0 && bursts.before < burstPercent { // GOGC asks for less memory still
			debug.SetGCPercent(bursts.before)
		}
	}
	return func() {
		bursts.mu.Lock()
		defer bursts.mu.Unlock()
		if bursts.count--; bursts.count == 0 {
			debug.SetGCPercent(bursts.before)
		}
	}
}
