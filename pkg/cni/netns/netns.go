// Package netns runs functions within network namespaces that are named by a path, and never leaves a thread of the
// process in the wrong one.
package netns

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loopbackIndex is the index of lo in every network namespace (LOOPBACK_IFINDEX in the kernel's net/flow.h).
const loopbackIndex = 1

// Exists tells whether the path holds a namespace. After a reboot, or when it was unpinned, at most an empty file is left.
func Exists(path string) bool {
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Do runs f in the network namespace at path, with a netlink handle of that namespace which Do closes. Files below
// /proc/sys/net that f opens are the namespace's own. f must not start goroutines that rely on the namespace.
func Do(path string, f func(*netlink.Handle) error) error {
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		leave, err := enter(target)
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		err = withHandle(f)
		// A thread that cannot return stays locked, so that the Go runtime ends it with this goroutine.
		if leave() == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("in network namespace %s: %w", path, err)
	}
	return nil
}

// enter moves the calling thread, which must be locked; leave moves it back. After an error the thread has not moved.
func enter(target *os.File) (leave func() error, err error) {
	origin, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		_ = origin.Close()
		return nil, fmt.Errorf("setns: %w", err)
	}
	return func() error {
		defer origin.Close()
		return unix.Setns(int(origin.Fd()), unix.CLONE_NEWNET)
	}, nil
}

func withHandle(f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	return f(h)
}

// LoopbackUp switches on the loopback interface of the namespace at path.
func LoopbackUp(path string) error {
	return Do(path, func(h *netlink.Handle) error {
		lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: loopbackIndex}}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("switch on the loopback interface: %w", err)
		}
		return nil
	})
}
