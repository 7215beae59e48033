// Package ns makes a pod's namespaces without a process to hold them: a thread leaves the host's namespaces, and each
// new one is pinned by a bind mount of its file below /proc (namespaces(7)). A thread cannot leave its user namespace alone, so
// for one of the pod's own a short-lived process is needed.
package ns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/idmap"
)

// Kind is a kind of namespace, named as its file below /proc/PID/ns.
type Kind string

// The kinds that a pod's containers can share without a process of the pod's own.
const (
	Net  Kind = "net"
	IPC  Kind = "ipc"
	UTS  Kind = "uts"
	User Kind = "user"
)

// PID is the kind that cannot be pinned before it has a process. Make does not make it.
const PID Kind = "pid"

// ErrSysctl says that the kernel has no such sysctl, or refuses its value.
var ErrSysctl = errors.New("refused by the kernel")

var flags = map[Kind]int{Net: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC, UTS: unix.CLONE_NEWUTS, User: unix.CLONE_NEWUSER}

// Config says what to make.
type Config struct {
	// Dir is the directory to pin the namespaces in, one file a kind. It is made.
	Dir string
	// Kinds are those to make. User is made by Users.
	Kinds []Kind
	// Users, if not nil, has a user namespace made, which the others belong to.
	Users *idmap.Mappings
	// Helper is the program that is executed, with Users, as HELPER namespaces: it is to call Serve.
	Helper string
	// Hostname is set in a UTS namespace.
	Hostname string
	// Sysctls are set within the new namespaces, by dotted or slashed name.
	Sysctls map[string]string
	// TryHostSys has Make fail, with Users, unless their root can show itself the host's /sys, read-only as far down as it goes:
	// it cannot make a sysfs for a network namespace that is not its own.
	TryHostSys bool
}

// Path is where Make pins a namespace of the kind in dir.
func Path(dir string, k Kind) string { return filepath.Join(dir, string(k)) }

// Make makes and pins the namespaces. After an error some may be pinned already: Remove undoes that. ErrSysctl.
func Make(ctx context.Context, c Config) error {
	if err := os.MkdirAll(c.Dir, 0o711); err != nil {
		return fmt.Errorf("make namespace directory: %w", err)
	}
	if c.Users != nil {
		return makeForUsers(ctx, c)
	}
	return onOwnThread(func() error { return makeOnThread(c) })
}

// onOwnThread runs fn on a thread that ends with it, and with the thread its hold on the namespaces. The process's first
// thread cannot end before the process (the Go runtime parks it for good), so where fn would come to run on that one,
// another is taken.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread with the goroutine
		if unix.Gettid() == unix.Getpid() {
			result <- onOwnThread(fn) // this goroutine keeps the first thread meanwhile
			runtime.UnlockOSThread()
			return
		}
		result <- fn()
	}()
	return <-result
}

func makeOnThread(c Config) error {
	all := 0
	for _, k := range c.Kinds {
		all |= flags[k]
	}
	if err := unix.Unshare(all); err != nil {
		return fmt.Errorf("unshare %v: %w", c.Kinds, err)
	}
	if err := (settings{Kinds: c.Kinds, Hostname: c.Hostname, Sysctls: c.Sysctls}).apply(); err != nil {
		return err
	}
	for _, k := range c.Kinds {
		if err := pin(c.Dir, k, "thread-self"); err != nil {
			return err
		}
	}
	return nil
}

// settings are what is set in new namespaces from inside.
type settings struct {
	Kinds      []Kind
	Hostname   string
	Sysctls    map[string]string
	TryHostSys bool
}

// apply acts on the namespaces of the calling thread.
func (s settings) apply() error {
	if s.TryHostSys {
		if err := tryHostSys(); err != nil {
			return err
		}
	}
	if slices.Contains(s.Kinds, UTS) {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", s.Hostname, err)
		}
	}
	for name, value := range s.Sysctls {
		if err := setSysctl(name, value); err != nil {
			return err
		}
	}
	return nil
}

// pin pins a namespace of the thread or process whose directory below /proc is given.
func pin(dir string, k Kind, proc string) error {
	target := Path(dir, k)
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("pin %s namespace: %w", k, err)
	}
	_ = f.Close()
	if err := unix.Mount(filepath.Join("/proc", proc, "ns", string(k)), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin %s namespace at %s: %w", k, target, err)
	}
	return nil
}

// setSysctl writes a sysctl of the calling thread's namespaces: the kernel resolves /proc/sys/net, /proc/sys/kernel's
// IPC part and /proc/sys/fs/mqueue by the thread that opens the file.
func setSysctl(name, value string) error {
	path, err := SysctlPath(name)
	if err != nil {
		return err
	}
	err = os.WriteFile(path, []byte(value), 0)
	if slices.ContainsFunc(sysctlErrors, func(e error) bool { return errors.Is(err, e) }) {
		return fmt.Errorf("set sysctl %s=%s: %w: %w", name, value, ErrSysctl, err)
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// sysctlErrors are what the kernel says of names and values: there is none, it is a directory, it is not to be written here, no value, too
// large (kernel/sysctl.c, fs/proc/proc_sysctl.c).
var sysctlErrors = []error{
	unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.ENAMETOOLONG, unix.EACCES, unix.EPERM, unix.EINVAL, unix.ERANGE, unix.EOPNOTSUPP,
}

// SysctlPath is the file of a sysctl in sysctl(8)'s notation, where "." and "/" change places if the first of them
// is a "/". It refuses a name that leaves /proc/sys.
func SysctlPath(name string) (string, error) {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("invalid sysctl name %q", name)
	}
	return filepath.Join("/proc/sys", name), nil
}

// CheckSysctl refuses a sysctl that would change the host: one that belongs to no namespace, or to one that the pod, by
// ownNet and ownIPC, does not have for itself.
func CheckSysctl(name string, ownNet, ownIPC bool) error {
	path, err := SysctlPath(name)
	if err != nil {
		return err
	}
	key := strings.TrimPrefix(path, "/proc/sys/")
	of, own := "network", ownNet
	switch {
	case strings.HasPrefix(key, "net/"):
	case strings.HasPrefix(key, "kernel/shm"), strings.HasPrefix(key, "kernel/msg"), key == "kernel/sem",
		strings.HasPrefix(key, "fs/mqueue/"):
		of, own = "IPC", ownIPC
	default:
		return fmt.Errorf("%s does not belong to a namespace", name)
	}
	if !own {
		return fmt.Errorf("%s would change the host, whose %s namespace the pod shares", name, of)
	}
	return nil
}

// Pinned tells whether dir still holds a namespace of the kind: a reboot leaves at most an empty file.
func Pinned(dir string, k Kind) bool {
	var st unix.Statfs_t
	return unix.Statfs(Path(dir, k), &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Remove unpins all namespaces in dir and removes it; the kernel frees a namespace with its last process. It is
// idempotent.
func Remove(dir string) error {
	var errs []error
	for k := range flags {
		path := Path(dir, k)
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
			!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unpin %s: %w", path, err))
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
