package quota

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// deviceNode is the name of a device node that Open may make. A file system mounted with nodev cannot use it.
const deviceNode = ".quota-device"

// deviceCaller uses the device that the mount table names, or, if that is no device node of this machine's /dev (such
// as /dev/root), a node made in dir.
func deviceCaller(dir *os.File) (caller, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return caller{}, fmt.Errorf("read device number: %w", err)
	}
	source, err := mountSource(st.Dev)
	if err != nil {
		return caller{}, err
	}
	if isDevice(source, st.Dev) {
		return caller{fd: -1, device: source}, nil
	}
	return nodeCaller(dir)
}

func nodeCaller(dir *os.File) (caller, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return caller{}, fmt.Errorf("read device number: %w", err)
	}
	node := filepath.Join(dir.Name(), deviceNode)
	if err := unix.Unlink(node); err != nil && !errors.Is(err, unix.ENOENT) { // of a process that was killed
		return caller{}, fmt.Errorf("remove old device node: %w", err)
	}
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Dev)); err != nil {
		return caller{}, fmt.Errorf("make device node: %w", err)
	}
	return caller{fd: -1, device: node, made: true}, nil
}

// mountSource returns the source of the first mount of the file system in /proc/self/mountinfo, see proc(5), or "" if
// none has the device number: subvolumes of btrfs have others than their mounts.
func mountSource(dev uint64) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("read mount table: %w", err)
	}
	defer f.Close()
	want := strconv.FormatUint(uint64(unix.Major(dev)), 10) + ":" + strconv.FormatUint(uint64(unix.Minor(dev)), 10)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // options of overlayfs are long
	for lines.Scan() {
		if device, source := mountDevice(lines.Text()); device == want {
			return source, nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read mount table: %w", err)
	}
	return "", nil
}

// mountDevice picks the device number and the source out of a line of mountinfo. Space, tab, newline and backslash are
// written as octal there.
func mountDevice(line string) (device, source string) {
	head, tail, _ := strings.Cut(line, " - ")
	front, back := strings.Fields(head), strings.Fields(tail)
	if len(front) < 3 || len(back) < 2 {
		return "", ""
	}
	return front[2], strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(back[1])
}

func isDevice(path string, dev uint64) bool {
	var st unix.Stat_t
	return filepath.IsAbs(path) && unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev
}
