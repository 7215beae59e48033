package quota

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of <linux/quota.h> and <linux/dqblk_xfs.h>. Both families of commands work on every file system with quotas: the
// kernel converts (fs/quota/quota.c).
const (
	projectQuota = 2 // PRJQUOTA

	cmdGet   = 0x800007   // Q_GETQUOTA
	cmdSet   = 0x800008   // Q_SETQUOTA
	cmdState = 'X'<<8 + 8 // Q_XGETQSTATV

	projectCounts = 1 << 4 // FS_QUOTA_PDQ_ACCT
	projectLimits = 1 << 5 // FS_QUOTA_PDQ_ENFD

	validLimits  = 1 | 4 // QIF_BLIMITS | QIF_ILIMITS
	limitUnit    = 1024  // QIF_DQBLKSIZE
	stateVersion = 1     // FS_QSTATV_VERSION1
)

// block is struct if_dqblk. Usage is in bytes, limits of space are in units of limitUnit.
type block struct {
	bytesHard, bytesSoft, curSpace    uint64
	inodesHard, inodesSoft, curInodes uint64
	bytesTime, inodesTime             uint64
	valid                             uint32
}

// stateBlock is struct fs_quota_statv.
type stateBlock struct {
	version int8
	_       uint8
	flags   uint16
	_       uint32
	_       [3][3]uint64 // quota files
	_       [10]uint64   // limits of time and warnings, room to grow
}

// caller makes quota calls on one file system: by quotactl_fd(2) if fd is not -1, by quotactl(2) on the device if not.
type caller struct {
	fd     int
	device string
	made   bool // device is a node of our own
}

// newCaller prefers quotactl_fd (Linux 5.14), which needs no device and so works on a root file system whose device has
// no node. It is a variable for tests of the older way.
var newCaller = func(dir *os.File) (caller, error) {
	if hasQuotactlFd() {
		return caller{fd: int(dir.Fd())}, nil
	}
	return deviceCaller(dir)
}

// hasQuotactlFd asks with a descriptor that nobody can have: the kernel looks at it first.
func hasQuotactlFd() bool {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, ^uintptr(0), cmdGet<<8|projectQuota, 0, 0, 0, 0)
	return errno == unix.EBADF
}

func (c caller) state() (flags uint16, err error) {
	s := stateBlock{version: stateVersion}
	err = c.do(cmdState, 0, unsafe.Pointer(&s))
	return s.flags, err
}

func (c caller) project(cmd uintptr, id uint32, q *block) error {
	return c.do(cmd, id, unsafe.Pointer(q))
}

func (c caller) do(cmd uintptr, id uint32, arg unsafe.Pointer) error {
	cmd = cmd<<8 | projectQuota // QCMD
	var errno unix.Errno
	if c.fd >= 0 {
		_, _, errno = unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(c.fd), cmd, uintptr(id), uintptr(arg), 0, 0)
	} else {
		device, err := unix.BytePtrFromString(c.device)
		if err != nil {
			return err
		}
		_, _, errno = unix.Syscall6(unix.SYS_QUOTACTL, cmd, uintptr(unsafe.Pointer(device)), uintptr(id), uintptr(arg), 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

func (c caller) close() error {
	if !c.made {
		return nil
	}
	return os.Remove(c.device)
}
