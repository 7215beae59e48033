package snapshot

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot/fsmount"
)

// maxData is the longest option string that mount(2) takes: a page with its terminating zero.
const maxData = 4095

// MountAll makes the mounts, first to last, on the target directory, each over the one before. After an error none
// of them is left. The working directory of the process is not changed.
func MountAll(mounts []Mount, target string) error {
	for i, m := range mounts {
		if err := m.mount(target, nil); err != nil {
			err = fmt.Errorf("mount %s on %s: %w", m.Type, target, err)
			for range i {
				err = errors.Join(err, unmountTop(target))
			}
			return err
		}
	}
	return nil
}

// Unmount detaches all that is mounted on target, and waits for nobody who still uses it (MNT_DETACH), also what a process that was
// killed while it mounted has left. A target that is not a mount point, is a symbolic link or does not exist is no error.
func Unmount(target string) error {
	if err := removeStage(target); err != nil {
		return err
	}
	for {
		err := unmountTop(target)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // umount2(2): not a mount point
			return nil
		default:
			return err
		}
	}
}

func unmountTop(target string) error {
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// mount mounts as the root of a user namespace, if ids is not nil.
func (m Mount) mount(target string, ids *IDMap) error {
	flags, data := parseOptions(m.Options)
	if flags&unix.MS_BIND != 0 || m.Type == "bind" {
		return m.mountBind(target, flags|unix.MS_BIND, data)
	}
	if m.Type == "overlay" {
		params, ok := m.overlayParams(flags, data)
		if has, err := fsmount.LowerdirPlus(); ok && err == nil && has {
			return onThread("", ids, func() error { return mountDetached(m.Type, params, flags, target) })
		}
	}
	return m.mountClassic(target, ids, flags, strings.Join(data, ","))
}

// mountClassic is mount(2), with Dir as the working directory.
func (m Mount) mountClassic(target string, ids *IDMap, flags uintptr, data string) error {
	if len(data) > maxData {
		return fmt.Errorf("options of %d bytes exceed the %d of mount(2), and this kernel lacks overlayfs's lowerdir+ (Linux 6.7): %w",
			len(data), maxData, unix.E2BIG)
	}
	target, err := filepath.Abs(target)
	if err != nil {
		return fmt.Errorf("resolve target: %w", err)
	}
	return onThread(m.Dir, ids, func() error {
		return unix.Mount(m.Source, target, m.Type, flags, data)
	})
}

// onThread runs f with dir as its working directory, and as the root of a user namespace, if they are given. Both are on a thread of its
// own: the working directory is shared by all threads of a process until unshare(CLONE_FS), and a thread has more than one goroutine.
func onThread(dir string, ids *IDMap, f func() error) error {
	if dir == "" && ids == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread, and what it has become, with the goroutine
		if dir != "" {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				done <- fmt.Errorf("unshare working directory: %w", err)
				return
			}
			if err := unix.Chdir(dir); err != nil {
				done <- fmt.Errorf("change directory to %s: %w", dir, err)
				return
			}
		}
		var err error
		if ids != nil {
			err = ids.become()
		}
		if err == nil {
			err = f()
		}
		if dir != "" {
			// The runtime cannot end a process's first thread, which it parks instead: it must not keep dir busy.
			err = errors.Join(err, unix.Chdir("/"))
		}
		done <- err
	}()
	return <-done
}

// mountBind binds, then remounts to apply the flags: the first mount(2) of a bind ignores them.
func (m Mount) mountBind(target string, flags uintptr, data []string) error {
	if len(data) > 0 {
		return fmt.Errorf("option %q does not apply to a bind mount: %w", data[0], unix.EINVAL)
	}
	source := m.Source
	if m.Dir != "" {
		source = m.path(source)
	}
	if err := unix.Mount(source, target, "", flags&(unix.MS_BIND|unix.MS_REC), ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	flags &^= unix.MS_REC
	if flags == unix.MS_BIND {
		return nil
	}
	var st unix.Statfs_t
	err := unix.Statfs(target, &st)
	if err == nil {
		// A remount replaces all flags: keep what the source's mount has. ST_* equal MS_* for these.
		const kept = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME
		err = unix.Mount("", target, "", flags|unix.MS_REMOUNT|uintptr(st.Flags)&kept, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("remount bind of %s: %w", source, err), unmountTop(target))
	}
	return nil
}

func mountDetached(fstype string, params []fsmount.Param, flags uintptr, target string) error {
	mnt, err := fsmount.Detached(fstype, params, mountAttrs(flags))
	if err != nil {
		return err
	}
	defer mnt.Close()
	return fsmount.Attach(mnt, target)
}

// overlayParams translates overlayfs options to those of fsconfig(2), with absolute paths. It says false for what
// only mount(2) can express: escaped characters, and paths longer than fsconfig's limit.
func (m Mount) overlayParams(flags uintptr, data []string) ([]fsmount.Param, bool) {
	params := []fsmount.Param{{Key: "source", Value: m.Source}}
	if flags&unix.MS_RDONLY != 0 {
		params = append(params, fsmount.Param{Key: "ro"})
	}
	for _, option := range data {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir":
			for dir := range strings.SplitSeq(value, ":") {
				if dir == "" { // "::" introduces data-only layers
					return nil, false
				}
				params = append(params, fsmount.Param{Key: "lowerdir+", Value: m.path(dir)})
			}
			if strings.Contains(value, `\`) {
				return nil, false
			}
		case "upperdir", "workdir":
			params = append(params, fsmount.Param{Key: key, Value: m.path(value)})
		case "context": // quoted for mount(2) only
			params = append(params, fsmount.Param{Key: key, Value: strings.Trim(value, `"`)})
		default:
			params = append(params, fsmount.Param{Key: key, Value: value})
		}
	}
	for _, p := range params {
		if len(p.Value) > fsmount.MaxValue {
			return nil, false
		}
	}
	return params, true
}

func (m Mount) path(p string) string {
	if m.Dir == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(m.Dir, p)
}

// mountFlags are the mount(8) options that are bits of mount(2); clear takes the bit away.
var mountFlags = map[string]struct {
	bit   uintptr
	clear bool
}{
	"defaults":    {},
	"bind":        {bit: unix.MS_BIND},
	"rbind":       {bit: unix.MS_BIND | unix.MS_REC},
	"ro":          {bit: unix.MS_RDONLY},
	"rw":          {bit: unix.MS_RDONLY, clear: true},
	"nosuid":      {bit: unix.MS_NOSUID},
	"suid":        {bit: unix.MS_NOSUID, clear: true},
	"nodev":       {bit: unix.MS_NODEV},
	"dev":         {bit: unix.MS_NODEV, clear: true},
	"noexec":      {bit: unix.MS_NOEXEC},
	"exec":        {bit: unix.MS_NOEXEC, clear: true},
	"noatime":     {bit: unix.MS_NOATIME},
	"atime":       {bit: unix.MS_NOATIME, clear: true},
	"nodiratime":  {bit: unix.MS_NODIRATIME},
	"diratime":    {bit: unix.MS_NODIRATIME, clear: true},
	"relatime":    {bit: unix.MS_RELATIME},
	"strictatime": {bit: unix.MS_STRICTATIME},
	"sync":        {bit: unix.MS_SYNCHRONOUS},
	"async":       {bit: unix.MS_SYNCHRONOUS, clear: true},
	"dirsync":     {bit: unix.MS_DIRSYNC},
}

// parseOptions splits options into the flags of mount(2) and the file system's own. Later options win.
func parseOptions(options []string) (flags uintptr, data []string) {
	for _, option := range options {
		f, ok := mountFlags[option]
		switch {
		case !ok:
			data = append(data, option)
		case f.clear:
			flags &^= f.bit
		default:
			flags |= f.bit
		}
	}
	return flags, data
}

// mountAttrs translates flags of mount(2) to the attributes of fsmount(2).
func mountAttrs(flags uintptr) int {
	attrs := 0
	for bit, attr := range map[uintptr]int{
		unix.MS_RDONLY:      unix.MOUNT_ATTR_RDONLY,
		unix.MS_NOSUID:      unix.MOUNT_ATTR_NOSUID,
		unix.MS_NODEV:       unix.MOUNT_ATTR_NODEV,
		unix.MS_NOEXEC:      unix.MOUNT_ATTR_NOEXEC,
		unix.MS_NODIRATIME:  unix.MOUNT_ATTR_NODIRATIME,
		unix.MS_NOATIME:     unix.MOUNT_ATTR_NOATIME,
		unix.MS_STRICTATIME: unix.MOUNT_ATTR_STRICTATIME,
	} {
		if flags&bit != 0 {
			attrs |= attr
		}
	}
	return attrs
}
