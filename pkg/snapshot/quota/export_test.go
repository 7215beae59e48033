package quota

import "os"

// Restrict makes Open ask the kernel in one way only, until the returned function is called: by "descriptor", by the
// "device" of the mount table, or by a device "node" of its own.
func Restrict(way string) (restore func()) {
	old := newCaller
	switch way {
	case "device":
		newCaller = deviceCaller
	case "node":
		newCaller = func(dir *os.File) (caller, error) { return nodeCaller(dir) }
	}
	return func() { newCaller = old }
}
