package quota

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of <linux/fs.h>.
const (
	getXattr     = 0x801c581f // FS_IOC_FSGETXATTR: _IOR('X', 31, struct fsxattr)
	setXattr     = 0x401c5820 // FS_IOC_FSSETXATTR: _IOW('X', 32, struct fsxattr)
	flagInherits = 0x200      // FS_XFLAG_PROJINHERIT
)

// xattr is struct fsxattr.
type xattr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// Assign gives a directory to a project, which it hands on to all that is made in it. What it has in it already stays
// as it is, so the directory had better be empty. Nothing can be moved into it that is of another project (EXDEV),
// while the directory itself can be moved into any directory that hands on no project.
func Assign(dir string, project uint32) error {
	f, err := openDir(dir)
	if err != nil {
		return fmt.Errorf("assign directory to project: %w", err)
	}
	defer f.Close()
	var x xattr
	if err := ioctl(f, getXattr, &x); err != nil {
		return fmt.Errorf("read project of %s: %w", dir, err)
	}
	x.project = project
	x.flags |= flagInherits
	if err := ioctl(f, setXattr, &x); err != nil {
		return fmt.Errorf("assign %s to project %d: %w", dir, project, err)
	}
	return nil
}

// Project tells which project a directory belongs to; 0 is none. File systems without projects give an error.
func Project(dir string) (uint32, error) {
	f, err := openDir(dir)
	if err != nil {
		return 0, fmt.Errorf("read project of directory: %w", err)
	}
	defer f.Close()
	var x xattr
	if err := ioctl(f, getXattr, &x); err != nil {
		return 0, fmt.Errorf("read project of %s: %w", dir, err)
	}
	return x.project, nil
}

func openDir(dir string) (*os.File, error) {
	return os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func ioctl(f *os.File, request uintptr, x *xattr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(x)))
	if errno != 0 {
		return errno
	}
	return nil
}
