package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot/fsmount"
)

// support is the answer of a probe.
type support int

const (
	unknown support = iota // could not be told; the feature is not used
	no
	yes
)

// features is what overlayfs of this kernel can do on the file system of the root.
type features struct {
	volatile support // no syncfs of the whole file system when a container is unmounted (Linux 5.10)
	indexOff support // the kernel has the inode index, which must be off: layers are shared by many mounts
}

// probe tries overlayfs with an upper directory below root, using scratch as its working place and leaving nothing.
// The error says why overlayfs cannot serve containers there. No mount is attached to the tree.
func probe(root, scratch string) (f features, err error) {
	defer func() {
		if rerr := os.RemoveAll(scratch); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove probe directory: %w", rerr))
		}
	}()
	for _, dir := range []string{"lower/gone", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(scratch, dir), 0o755); err != nil {
			return f, fmt.Errorf("make probe directory: %w", err)
		}
	}
	// Unpacking marks opaque directories by this attribute.
	err = unix.Setxattr(filepath.Join(scratch, "lower"), "trusted.overlay.opaque", []byte("n"), 0)
	if err != nil {
		return f, fmt.Errorf("overlay root %s: its file system refuses trusted attributes, needs root on ext4, xfs or btrfs: %w", root, err)
	}
	if err := tryOverlay(scratch); err != nil {
		return f, fmt.Errorf("overlay root %s cannot hold upper directories of overlayfs: %w", root, err)
	}
	f.indexOff = tryOption(scratch, fsmount.Param{Key: "index", Value: "off"})
	f.volatile = tryOption(scratch, fsmount.Param{Key: "volatile"})
	return f, nil
}

// isFull tells whether a probe failed for want of room, which says nothing of what it was to find out.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// kernelFeatures is what the kernel tells without a mount, for a file system that has no room for the probe.
func kernelFeatures() features {
	f := features{indexOff: unknown}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC) // loads the module
	if err != nil {
		return f
	}
	defer unix.Close(fd)
	switch _, err := os.Stat("/sys/module/overlay/parameters/index"); {
	case err == nil:
		f.indexOff = yes
	case errors.Is(err, os.ErrNotExist):
		f.indexOff = no
	}
	return f
}

// tryOverlay mounts writable and replaces a lower directory, which takes a whiteout and an opaque directory.
func tryOverlay(scratch string) error {
	mnt, err := mountProbe(scratch)
	if err != nil {
		return err
	}
	defer mnt.Close()
	dir := int(mnt.Fd())
	if err := unix.Unlinkat(dir, "gone", unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove a lower directory: %w", err)
	}
	if err := unix.Mkdirat(dir, "gone", 0o755); err != nil {
		return fmt.Errorf("replace a lower directory: %w", err)
	}
	return nil
}

// tryOption mounts with one more option. A mount without it has succeeded before.
func tryOption(scratch string, option fsmount.Param) support {
	mnt, err := mountProbe(scratch, option)
	switch {
	case err == nil:
		mnt.Close()
		return yes
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return no
	}
	return unknown
}

func mountProbe(scratch string, more ...fsmount.Param) (*os.File, error) {
	params := []fsmount.Param{
		{Key: "source", Value: "overlay"},
		{Key: "lowerdir", Value: filepath.Join(scratch, "lower")},
		{Key: "upperdir", Value: filepath.Join(scratch, "upper")},
		{Key: "workdir", Value: filepath.Join(scratch, "work")},
	}
	return fsmount.Detached("overlay", append(params, more...), 0)
}
