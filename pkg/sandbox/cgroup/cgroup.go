// Package cgroup makes and removes the cgroups that pods own, on cgroup v1 (also with the empty v2 hierarchy of a
// hybrid set-up beside it) and on v2. A path is absolute within each hierarchy, such as "/criserver/pod1".
// The cgroups of containers are the OCI runtime's.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// Create makes the cgroup in every hierarchy, with its parents; it may exist already.
func Create(path string) error {
	if err := check(path); err != nil {
		return err
	}
	var err error
	if hierarchy.Unified() {
		_, err = cgroup2.NewManager(hierarchy.Mountpoint, path, &cgroup2.Resources{})
	} else {
		_, err = cgroup1.New(cgroup1.StaticPath(path), &specs.LinuxResources{})
	}
	if err != nil {
		return fmt.Errorf("create cgroup %s: %w", path, err)
	}
	return nil
}

// Enter moves a process into the cgroup in every hierarchy, which is made if needed.
func Enter(path string, pid int) error {
	if err := Create(path); err != nil {
		return err
	}
	var errs []error
	for _, root := range roots() {
		dir := filepath.Join(root, path)
		if _, err := os.Stat(dir); err != nil {
			continue // a hierarchy without the cgroup, such as the v2 one of a hybrid set-up
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			errs = append(errs, fmt.Errorf("enter cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// Exists tells whether the cgroup is there in any hierarchy.
func Exists(path string) bool {
	for _, root := range roots() {
		if _, err := os.Stat(filepath.Join(root, path)); err == nil {
			return true
		}
	}
	return false
}

// Remove removes the cgroup and all below it in every hierarchy. The processes must be gone: EBUSY tells of one that is
// not. It is idempotent.
func Remove(path string) error {
	if err := check(path); err != nil {
		return err
	}
	var errs []error
	for _, root := range roots() {
		if err := removeTree(filepath.Join(root, path)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Prune removes the cgroup in every hierarchy where nothing is below it and no process in it; else it does nothing.
func Prune(path string) {
	if check(path) != nil {
		return
	}
	for _, root := range roots() {
		_ = unix.Rmdir(filepath.Join(root, path))
	}
}

// PruneWait is Prune for a cgroup whose last process is ending; it waits for that at most pruneLimit.
func PruneWait(ctx context.Context, path string) {
	ctx, cancel := context.WithTimeout(ctx, pruneLimit)
	defer cancel()
	for Prune(path); Exists(path); Prune(path) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

const pruneLimit = 3 * time.Second

// Children lists the names of the cgroups right below path in any hierarchy.
func Children(path string) ([]string, error) {
	seen := map[string]struct{}{}
	var names []string
	for _, root := range roots() {
		entries, err := os.ReadDir(filepath.Join(root, path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list cgroup %s: %w", path, err)
		}
		for _, e := range entries {
			if _, ok := seen[e.Name()]; e.IsDir() && !ok {
				seen[e.Name()] = struct{}{}
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// removeTree removes cgroup directories from the leaves up: their files go with them.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// check keeps Remove away from the root and from everything that the kernel would resolve elsewhere.
func check(path string) error {
	if !strings.HasPrefix(path, "/") || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("invalid cgroup path %q: want an absolute, clean path below the root", path)
	}
	return nil
}

// roots are the mount points of all hierarchies; they do not change while a machine runs.
var roots = sync.OnceValue(func() []string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return []string{hierarchy.Mountpoint}
	}
	var dirs []string
	for _, m := range mounts {
		if m.Root == "/" && (m.Mountpoint == hierarchy.Mountpoint || filepath.Dir(m.Mountpoint) == hierarchy.Mountpoint) {
			dirs = append(dirs, m.Mountpoint)
		}
	}
	return dirs
})

// warming is held by the one Warm at work.
var warming atomic.Bool

// Warm makes the next moves of processes between cgroups quick. A write to any cgroup.procs takes the kernel's
// cgroup_threadgroup_rwsem, whose first writer waits for an RCU grace period, some 10 ms, and leaves it in a state in which
// the writers of the next such period need not wait (kernel/cgroup/cgroup.c, kernel/rcu/sync.c). This write, of this process
// into the cgroup where it is, changes nothing; it returns at once and waits in the background, so that the grace period
// runs while a container is being prepared.
func Warm() {
	if !warming.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer warming.Store(false)
		if procs := ownProcs(); procs != "" {
			_ = os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0)
		}
	}()
}

// ownProcs is the cgroup.procs file of this process's cgroup in some hierarchy, preferably the v2 one: without controllers,
// as in a hybrid set-up, a write does the least there.
var ownProcs = sync.OnceValue(func() string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	found := ""
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, root := range []string{"", "unified", fields[1]} {
			procs := filepath.Join(hierarchy.Mountpoint, root, fields[2], "cgroup.procs")
			if _, err := os.Stat(procs); err == nil {
				found = procs
			}
		}
		if fields[0] == "0" && found != "" {
			break
		}
	}
	return found
})

// CanLimitSwap tells whether the kernel accounts swap to cgroups: it can be switched off at boot (swapaccount=0).
func CanLimitSwap() bool {
	if !hierarchy.Unified() {
		_, err := os.Stat(filepath.Join(hierarchy.Mountpoint, "memory", "memory.memsw.limit_in_bytes"))
		return err == nil
	}
	// The root cgroup has no limits, so another one must tell.
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	_, path, _ := strings.Cut(strings.TrimSpace(string(own)), "::")
	if path == "/" {
		children, err := filepath.Glob(filepath.Join(hierarchy.Mountpoint, "*", "memory.swap.max"))
		return err == nil && len(children) > 0
	}
	_, err = os.Stat(filepath.Join(hierarchy.Mountpoint, path, "memory.swap.max"))
	return err == nil
}

// CanLimitHugepages tells whether there is a hugetlb controller.
func CanLimitHugepages() bool {
	if !hierarchy.Unified() {
		var st unix.Statfs_t
		return unix.Statfs(filepath.Join(hierarchy.Mountpoint, "hugetlb"), &st) == nil && st.Type == unix.CGROUP_SUPER_MAGIC
	}
	controllers, err := os.ReadFile(filepath.Join(hierarchy.Mountpoint, "cgroup.controllers"))
	return err == nil && strings.Contains(string(controllers), "hugetlb")
}
