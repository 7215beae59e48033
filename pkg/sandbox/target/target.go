// Package target checks where mounts go in a container's root file system, and where its process begins. A runtime would refuse what is
// wrong too, but late, and without the name of the field.
package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/spec"
)

const fieldPath = "mounts.container_path"

// procFiles are what may be mounted on below /proc: files that lxcfs makes for containers, and what says nothing of the host. Elsewhere a
// mount could keep a runtime from what it sets there for confinement (CVE-2019-16884; runc, checkProcMount).
var procFiles = strings.Fields(`/proc/cpuinfo /proc/diskstats /proc/meminfo /proc/stat /proc/swaps /proc/uptime /proc/loadavg /proc/slabinfo
	/proc/sys/kernel/ns_last_pid /proc/sys/crypto/fips_enabled`)

// root is a root file system that is mounted, and in which nothing runs.
type root struct {
	dir string
	// mounts are where there will be mounts in it, without symlinks, and their sources.
	mounts []mount
}

type mount struct{ at, source string }

// Check refuses mounts of a container, and a working directory, which field is the name of, that the specification s has and its root
// file system does not go with: a spec.ErrInvalid. What is on another mount is not looked at, and a is for asking the host.
func Check(ctx context.Context, a *hostpath.Asker, s *specs.Spec, mounts []spec.Mount, field string) error {
	r := root{dir: s.Root.Path}
	for _, m := range s.Mounts {
		at, err := r.resolve(fieldPath, m.Destination)
		if err != nil {
			return err
		}
		source := ""
		if m.Type == "bind" {
			source = m.Source
		}
		r.mounts = append(r.mounts, mount{at, source})
	}
	for _, m := range mounts {
		if err := r.checkMount(ctx, a, m); err != nil {
			return err
		}
	}
	return r.checkWorkingDir(field, s.Process.Cwd)
}

// resolve follows the symlinks in a path of the container, which is that of a field.
func (r root) resolve(field, name string) (string, error) {
	at, err := securejoin.SecureJoin(r.dir, name)
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return "", spec.Invalidf(field, "%v", err)
	case err != nil:
		return "", fmt.Errorf("find %s in the root file system: %w", name, err)
	}
	return path.Join("/", strings.TrimPrefix(at, r.dir)), nil
}

// covered tells whether a mount above a path hides what the root file system has there.
func (r root) covered(at string) bool {
	return slices.ContainsFunc(r.mounts, func(m mount) bool { return m.at != at && strings.HasPrefix(at, m.at+"/") })
}

func (r root) checkMount(ctx context.Context, a *hostpath.Asker, m spec.Mount) error {
	// A symlink of the image that is hidden leads nowhere.
	if name := path.Join("/", m.Destination); name != "/proc" && !strings.HasPrefix(name, "/proc/") && r.covered(name) {
		return nil
	}
	at, err := r.resolve(fieldPath, m.Destination)
	switch {
	case err != nil:
		return err
	case at == "/":
		return spec.Invalidf(fieldPath, "%s leads to the root directory, which cannot be mounted on", m.Destination)
	case at == "/proc":
		return checkProc(ctx, a, m)
	case strings.HasPrefix(at, "/proc/") && !slices.Contains(procFiles, at):
		return spec.Invalidf(fieldPath, "%s: below /proc only these can be mounted on: %s", m.Destination, strings.Join(procFiles, " "))
	case r.covered(at):
		return nil
	}
	info, err := os.Lstat(path.Join(r.dir, at))
	switch dir, known := hostpath.IsDir(m.Source); {
	case errors.Is(err, unix.ENOTDIR):
		return spec.Invalidf(fieldPath, "%s is below a file of the image", m.Destination)
	case errors.Is(err, os.ErrNotExist):
		return nil // runtimes make it
	case err != nil:
		return fmt.Errorf("find %s in the root file system: %w", m.Destination, err)
	case known && dir && !info.IsDir():
		return spec.Invalidf(fieldPath, "%s is a file of the image, and %s a directory", m.Destination, m.Source)
	case known && !dir && info.IsDir():
		return spec.Invalidf(fieldPath, "%s is a directory of the image, and %s a file", m.Destination, m.Source)
	}
	return nil
}

// checkProc lets nothing but a proc file system be in the place of the container's.
func checkProc(ctx context.Context, a *hostpath.Asker, m spec.Mount) error {
	st, err := hostpath.Soon(ctx, a, m.Source, func() (st unix.Statfs_t, err error) { return st, unix.Statfs(m.Source, &st) })
	if err != nil {
		return fmt.Errorf("ask for the file system of %s: %w", m.Source, err)
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return spec.Invalidf(fieldPath, "%s: %s is no proc file system, as which alone it can be mounted there", m.Destination, m.Source)
	}
	return nil
}

func (r root) checkWorkingDir(field, name string) error {
	if r.covered(path.Join("/", name)) {
		return nil
	}
	at, err := r.resolve(field, name)
	if err != nil || r.covered(at) {
		return err
	}
	if i := slices.IndexFunc(r.mounts, func(m mount) bool { return m.at == at }); i >= 0 {
		if dir, known := hostpath.IsDir(r.mounts[i].source); known && !dir {
			return spec.Invalidf(field, "%s is where the file %s is mounted", name, r.mounts[i].source)
		}
		return nil
	}
	info, err := os.Lstat(path.Join(r.dir, at))
	switch {
	case errors.Is(err, unix.ENOTDIR), err == nil && !info.IsDir():
		return spec.Invalidf(field, "%s is no directory of the image", name)
	case err != nil && !errors.Is(err, os.ErrNotExist): // else runtimes make it
		return fmt.Errorf("find %s in the root file system: %w", name, err)
	}
	return nil
}
