package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// IDMap is a user namespace whose users see files with the owners that these have on disk: root's files are its root's.
type IDMap struct {
	// UserNS is the path of the namespace.
	UserNS string
	// UID and GID are the IDs, on the host, of its root.
	UID, GID int
}

// MountMapped makes the mounts as MountAll does, for a user namespace (mount_setattr(2), "ID-mapped mounts"). What is written there
// has on disk the IDs that it has in the namespace. Overlayfs takes Linux 5.19, others what they take; unix.EINVAL says that the
// file system cannot.
func MountMapped(mounts []Mount, target string, ids IDMap) error {
	users, err := os.Open(ids.UserNS)
	if err != nil {
		return fmt.Errorf("mount for a user namespace: %w", err)
	}
	defer users.Close()
	for i, m := range mounts {
		if m.Type == "overlay" {
			err = m.mountOverlayMapped(target, ids, users)
		} else if err = m.mount(target, nil); err == nil {
			err = remountMapped(target, users)
		}
		if err != nil {
			err = fmt.Errorf("mount %s on %s for a user namespace: %w", m.Type, target, err)
			for range i {
				err = errors.Join(err, unmountTop(target))
			}
			return err
		}
	}
	return nil
}

// remountMapped puts an ID-mapped mount in the place of the one on target, which goes in any case.
func remountMapped(target string, users *os.File) error {
	mnt, err := mapped(target, users)
	if err != nil {
		return errors.Join(err, unmountTop(target))
	}
	defer unix.Close(mnt)
	if err := unmountTop(target); err != nil {
		return err
	}
	return attach(mnt, target)
}

// mapped is a detached, ID-mapped mount of what path shows.
func mapped(path string, users *os.File) (mnt int, err error) {
	mnt, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("clone the mount of %s: %w", path, err)
	}
	err = unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())})
	if err != nil {
		_ = unix.Close(mnt)
		return 0, fmt.Errorf("map the IDs of %s: %w", path, err)
	}
	return mnt, nil
}

func attach(mnt int, target string) error {
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach a mount to %s: %w", target, err)
	}
	return nil
}

// mountOverlayMapped maps the directories that overlayfs is made of, since it cannot be mapped itself. They are seen through
// one mapped mount of what is above them all, which overlayfs needs only to be mounted.
func (m Mount) mountOverlayMapped(target string, ids IDMap, users *os.File) error {
	over, above, err := m.below()
	if err != nil {
		return err
	}
	mnt, err := mapped(above, users)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	over.Dir = stage(target)
	if err := os.MkdirAll(over.Dir, 0o700); err != nil {
		return fmt.Errorf("make a place for layers: %w", err)
	}
	if err := attach(mnt, over.Dir); err != nil {
		return errors.Join(err, removeStage(target))
	}
	if err := over.mount(target, &ids); err != nil {
		return errors.Join(err, removeStage(target))
	}
	if err := removeStage(target); err != nil {
		return errors.Join(err, unmountTop(target))
	}
	return nil
}

// stage is where the layers of an overlay on target are mounted while that is made. Nobody but root passes what is above it.
func stage(target string) string { return filepath.Join(target+".layers", "all") }

// removeStage is idempotent.
func removeStage(target string) error {
	place := stage(target)
	if err := unmountTop(place); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	for _, dir := range []string{place, filepath.Dir(place)} {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove the place of layers %s: %w", dir, err)
		}
	}
	return nil
}

// below returns the overlay mount with all directories relative to the lowest one above them all.
func (m Mount) below() (over Mount, above string, err error) {
	var dirs []string
	over = Mount{Type: m.Type, Source: m.Source}
	for _, option := range m.Options {
		if key, value, _ := strings.Cut(option, "="); slices.Contains(overlayDirs, key) {
			if strings.Contains(value, `\`) || strings.Contains(value, "::") {
				return over, "", fmt.Errorf("option %s has escaped characters or data-only layers: %w", key, unix.EINVAL)
			}
			for dir := range strings.SplitSeq(value, ":") {
				dirs = append(dirs, m.path(dir))
			}
		}
	}
	above = common(dirs)
	for _, option := range m.Options {
		key, value, _ := strings.Cut(option, "=")
		if slices.Contains(overlayDirs, key) {
			var relative []string
			for dir := range strings.SplitSeq(value, ":") {
				relative = append(relative, strings.TrimPrefix(strings.TrimPrefix(m.path(dir), above), "/"))
			}
			option = key + "=" + strings.Join(relative, ":")
		}
		over.Options = append(over.Options, option)
	}
	return over, above, sameFileSystem(above, dirs)
}

var overlayDirs = []string{"lowerdir", "upperdir", "workdir"}

// common is the lowest directory that is above all of dirs, and none of them.
func common(dirs []string) string {
	above := filepath.Dir(dirs[0])
	for _, dir := range dirs {
		for above != "/" && !strings.HasPrefix(dir, above+"/") {
			above = filepath.Dir(above)
		}
	}
	return above
}

// sameFileSystem refuses directories that a mount of the one above them would not show.
func sameFileSystem(above string, dirs []string) error {
	var want, st unix.Stat_t
	if err := unix.Stat(above, &want); err != nil {
		return fmt.Errorf("find %s: %w", above, err)
	}
	for _, dir := range dirs {
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Errorf("find %s: %w", dir, err)
		}
		if st.Dev != want.Dev {
			return fmt.Errorf("%s is on another file system than %s: %w", dir, above, unix.EXDEV)
		}
	}
	return nil
}

// become lets the calling thread, which is not to be used for anything else, act on files as the namespace's root. Overlayfs makes its
// work directory as who mounts it, and an ID-mapped mount has no place for a user that is not in the map.
func (ids IDMap) become() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var held [2]unix.CapUserData
	if err := unix.Capget(&header, &held[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if err := unix.Setfsgid(ids.GID); err != nil {
		return fmt.Errorf("become group %d: %w", ids.GID, err)
	}
	if err := unix.Setfsuid(ids.UID); err != nil {
		return fmt.Errorf("become user %d: %w", ids.UID, err)
	}
	// That has taken the capabilities that concern files (capabilities(7)), and the right of debuggers to this process.
	if err := unix.Capset(&header, &held[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
}

// CanMap tells why the file system of the directory dir cannot be seen from a user namespace, by trying it; nil if it can. It
// is for one caller at a time.
func CanMap(dir string, ids IDMap) error {
	base := filepath.Join(dir, ".idmap")
	target := filepath.Join(base, "target")
	defer os.RemoveAll(base)
	if err := Unmount(target); err != nil { // of a process that was killed
		return err
	}
	for _, name := range []string{"lower", "upper", "work", "target"} {
		if err := os.MkdirAll(filepath.Join(base, name), 0o755); err != nil {
			return fmt.Errorf("try an ID-mapped mount: %w", err)
		}
	}
	m := Mount{Type: "overlay", Source: "overlay", Dir: base, Options: []string{"lowerdir=lower", "upperdir=upper", "workdir=work"}}
	if err := MountMapped([]Mount{m}, target, ids); err != nil {
		return err
	}
	// Overlayfs is read-only without a word when it cannot make its work directory.
	err := onThread("", &ids, func() error { return os.Mkdir(filepath.Join(target, "new"), 0o755) })
	return errors.Join(err, Unmount(target))
}
