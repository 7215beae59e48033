// Package quota counts and limits, by project quotas of the file system, what directory trees take on disk.
//
// A project is a number in each inode. A directory of a project hands it on to all that is made in it, the file system
// keeps a count of bytes and inodes for each project, and reading a count costs one system call however large the trees
// are. A write beyond a project's limit gets EDQUOT (ext4) or ENOSPC (xfs).
//
// ext4 has project quotas if it was made or tuned with the features quota and project and is mounted with prjquota
// (ext4(5)); xfs if it is mounted with pquota (xfs(5)); f2fs like ext4. A process with CAP_SYS_RESOURCE is above
// the limits of ext4 (fs/quota/dquot.c, ignore_hardlimit), though not by way of overlayfs, which lowers that
// capability (fs/overlayfs/super.c, ovl_fill_super).
//
// Limits hold against whoever writes too much, not against whoever wants to evade them: a process that owns a file may
// take it to another project, or have a directory no longer hand on its own, also by way of overlayfs, unless it
// is in a user namespace (fs/ioctl.c, fileattr_set_prepare). Only a seccomp filter that refuses the ioctls
// FS_IOC_FSSETXATTR and FS_IOC_SETFLAGS and the system call file_setattr (Linux 6.17) keeps it from that.
package quota

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Answer is what a probe finds.
type Answer int

// Answers of a probe.
const (
	Unknown Answer = iota // could not be told
	No
	Yes
)

// State is what project quotas do on a file system.
type State struct {
	Counts Answer // usage is counted by project
	Limits Answer // limits are enforced
	Reason error  // why one of them is not Yes; nil if both are
}

// Usage is what a project takes: space allocated or promised, so writes count at once, before they are on the disk.
// What is deleted counts at xfs until the kernel has freed it in the background.
type Usage struct {
	Bytes, Inodes int64
}

// Limits are what a project may take, at most; 0 is no limit. The kernel keeps bytes in units of 1024, rounded up.
type Limits struct {
	Bytes, Inodes int64
}

// FS is a file system. Its methods may be called by several goroutines at once.
type FS struct {
	dir  *os.File
	call caller
}

// Open opens the file system that the directory is on. Where the kernel takes no file descriptor for quotas, Open looks
// for the file system's device, and may make a device node in the directory, which Close removes. Having no quotas is
// not an error here: see State.
func Open(dir string) (*FS, error) {
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open file system for quotas: %w", err)
	}
	call, err := newCaller(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reach quotas of %s: %w", dir, err), f.Close())
	}
	return &FS{dir: f, call: call}, nil
}

// Close ends the use of fs.
func (fs *FS) Close() error {
	return errors.Join(fs.call.close(), fs.dir.Close())
}

// State asks the file system what is switched on.
func (fs *FS) State() State {
	flags, err := fs.call.state()
	switch {
	case errors.Is(err, unix.ENOSYS): // fs/quota/quota.c: no quota support, or no quota of any type is on
		return State{No, No, errors.New("no quotas are on")}
	case err != nil:
		return State{Reason: fmt.Errorf("read state of quotas: %w", err)}
	case flags&projectCounts == 0:
		return State{No, No, errors.New("quotas of projects are not on, only of users or groups")}
	case flags&projectLimits == 0:
		return State{Yes, No, errors.New("projects are counted, but limits are not enforced")}
	}
	return State{Yes, Yes, nil}
}

// Get reads a project's usage and limits. A project that nobody uses has none of either.
func (fs *FS) Get(project uint32) (Usage, Limits, error) {
	var q block
	err := fs.call.project(cmdGet, project, &q)
	if errors.Is(err, unix.ENOENT) { // xfs keeps no record of a project before it is used
		return Usage{}, Limits{}, nil
	}
	if err != nil {
		return Usage{}, Limits{}, fmt.Errorf("read quota of project %d: %w", project, err)
	}
	return Usage{int64(q.curSpace), int64(q.curInodes)}, Limits{int64(q.bytesHard * limitUnit), int64(q.inodesHard)}, nil
}

// Limit sets the limits of a project, and thereby removes those that it had.
func (fs *FS) Limit(project uint32, l Limits) error {
	if l.Bytes < 0 || l.Inodes < 0 {
		return fmt.Errorf("limit project %d to %d bytes, %d inodes: %w", project, l.Bytes, l.Inodes, unix.EINVAL)
	}
	units := uint64(l.Bytes) / limitUnit
	if uint64(l.Bytes)%limitUnit > 0 {
		units++
	}
	q := block{bytesHard: units, inodesHard: uint64(l.Inodes), valid: validLimits}
	if err := fs.call.project(cmdSet, project, &q); err != nil {
		return fmt.Errorf("limit project %d: %w", project, err)
	}
	return nil
}
