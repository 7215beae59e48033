package hosts

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// stampOf changes when a file does, or what is in a directory. The time of the last change of the inode, which no
// program can set, catches what was written within one tick of the modification time, or had that set back.
func stampOf(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Sprintf("%s: %v\n", path, err)
	}
	return fmt.Sprintf("%s: %d %d %d %d %d\n", path, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
}
