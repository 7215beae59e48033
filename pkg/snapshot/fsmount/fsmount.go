// Package fsmount makes file system instances with fsopen(2), fsconfig(2) and fsmount(2), of Linux 5.2 and later.
//
// Against mount(2) it has three merits: options are not limited to one page, the kernel's reason for a refusal
// comes back as text instead of a bare EINVAL, and the mount exists detached before it is attached, so a file system
// can be tried without any trace in the mount table. Do not use it for bind mounts.
package fsmount

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// MaxValue is the longest value, in bytes, that fsconfig(2) takes as a string (fs/fsopen.c: strndup_user of 256).
const MaxValue = 255

// Param is one fsconfig(2) call: a flag if Value is empty, otherwise a string.
type Param struct {
	Key, Value string
}

// Detached makes a file system of the type with the parameters, in their order, and returns its root as an O_PATH
// file that is attached nowhere: closing it unmounts it. attrs are MOUNT_ATTR_* of fsmount(2). The error carries
// what the kernel says about the refused parameter.
func Detached(fstype string, params []Param, attrs int) (*os.File, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open file system type %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	for _, p := range params {
		if err := set(fs, p); err != nil {
			return nil, fmt.Errorf("set %s option %q: %w", fstype, p.Key, explain(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create %s: %w", fstype, explain(fs, err))
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", fstype, explain(fs, err))
	}
	return os.NewFile(uintptr(mnt), fstype), nil
}

// Attach places a detached mount on the target, which may be a mount point already. The mount stays when the file
// is closed.
func Attach(mnt *os.File, target string) error {
	err := unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", mnt.Name(), target, err)
	}
	return nil
}

// LowerdirPlus tells whether overlayfs takes its lower directories one by one as "lowerdir+" (Linux 6.7). An error
// means that it could not be told.
var LowerdirPlus = probeOnce(probeLowerdirPlus)

// probeOnce keeps the answer of probe from the first time that it is conclusive.
func probeOnce(probe func() (bool, error)) func() (bool, error) {
	var mu sync.Mutex
	var known, answer bool
	return func() (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		if known {
			return answer, nil
		}
		ok, err := probe()
		if err != nil {
			return false, err
		}
		known, answer = true, ok
		return answer, nil
	}
}

func probeLowerdirPlus() (bool, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENOSYS):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("open file system type overlay: %w", err)
	}
	defer unix.Close(fs)
	// Up to Linux 6.4 overlayfs is configured by the legacy wrapper, which accepts every name until the superblock
	// is created: a name that nobody knows tells the wrapper from the real parser.
	if unix.FsconfigSetString(fs, "criserver_no_such_option", "1") == nil {
		return false, nil
	}
	err = unix.FsconfigSetString(fs, "lowerdir+", "/")
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EINVAL):
		return false, nil
	}
	return false, fmt.Errorf("set overlay option lowerdir+: %w", err)
}

func set(fs int, p Param) error {
	if p.Value == "" {
		return unix.FsconfigSetFlag(fs, p.Key)
	}
	if len(p.Value) > MaxValue {
		return fmt.Errorf("value of %d bytes, fsconfig takes %d: %w", len(p.Value), MaxValue, unix.ENAMETOOLONG)
	}
	return unix.FsconfigSetString(fs, p.Key, p.Value)
}

// explain adds the messages that the kernel queued on the file system context to err. Each read(2) returns one
// message, prefixed by its severity and a space, and ENODATA when there are no more.
func explain(fs int, err error) error {
	var said []string
	buf := make([]byte, 512)
	for range 8 {
		n, rerr := unix.Read(fs, buf)
		if rerr != nil || n <= 0 {
			break
		}
		_, text, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
		said = append(said, text)
	}
	if len(said) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(said, "; "))
}
