package quota_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutCapability runs do on a thread that does not have the capability in its effective set.
func withoutCapability(t testing.TB, capability uint, do func() error) error {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capget(&header, &sets[0]); err != nil {
			result <- err
			return
		}
		sets[capability/32].Effective &^= 1 << (capability % 32)
		if err := unix.Capset(&header, &sets[0]); err != nil {
			result <- err
			return
		}
		result <- do()
	}()
	return <-result
}
