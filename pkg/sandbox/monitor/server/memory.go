package server

import (
	"runtime/debug"
	"sync"
	"time"
)

var memory struct {
	sync.Mutex
	timer *time.Timer
}

// releaseMemory gives free heap back to the system a while after the last call: a burst of starts leaves behind some
// megabytes of decoded specifications, and this process is resident on every node.
func releaseMemory() {
	const quiet = time.Second
	memory.Lock()
	defer memory.Unlock()
	if memory.timer == nil {
		memory.timer = time.AfterFunc(quiet, debug.FreeOSMemory)
		return
	}
	memory.timer.Reset(quiet)
}
