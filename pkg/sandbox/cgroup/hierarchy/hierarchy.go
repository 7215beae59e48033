// Package hierarchy tells where cgroups are mounted, and in which version. It imports nothing of ours: crimonitor has it too.
package hierarchy

import (
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Mountpoint is where systemd and every distribution mount cgroups (cgroups(7)).
const Mountpoint = "/sys/fs/cgroup"

// Unified tells whether the machine runs pure cgroup v2, which does not change while it runs.
var Unified = sync.OnceValue(func() bool {
	var st unix.Statfs_t
	return unix.Statfs(Mountpoint, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
})

// Dir is the directory of the cgroup at path: on cgroup v1 the one in the hierarchy of the controller, else the only one.
func Dir(controller, path string) string {
	if Unified() {
		return filepath.Join(Mountpoint, path)
	}
	return filepath.Join(Mountpoint, controller, path)
}
