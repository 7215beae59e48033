// Package group works on the cgroup of one container, whichever OCI runtime has made it. The parent's, the pod's, is
// pkg/sandbox/cgroup's.
package group

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules of cgroup v1 and v2
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/specfile"
)

// killWait bounds how long Empty waits for killed processes to leave the cgroup.
const killWait = 10 * time.Second

// ReadSpec reads the specification of a bundle.
func ReadSpec(bundle string) (*specs.Spec, error) {
	spec := &specs.Spec{}
	if err := specfile.Decode(bundle, spec); err != nil {
		return nil, err
	}
	return spec, nil
}

// OfBundle returns the cgroup that the specification of a bundle names, whether or not it is there; os.ErrNotExist if there is
// no bundle, or none is named.
func OfBundle(bundle string) (cgroups.Manager, error) {
	spec, err := ReadSpec(bundle)
	if err != nil {
		return nil, err
	}
	if spec.Linux == nil || spec.Linux.CgroupsPath == "" {
		return nil, fmt.Errorf("cgroup of bundle %s: %w", bundle, os.ErrNotExist)
	}
	c := &cgroups.Cgroup{Path: spec.Linux.CgroupsPath, Resources: &cgroups.Resources{}}
	if slice, rest, ok := systemdPath(c.Path); ok {
		c.Systemd, c.Path, c.Parent = true, "", slice
		c.ScopePrefix, c.Name, _ = strings.Cut(rest, ":")
	}
	return manager.New(c)
}

// Systemd tells whether systemd is to make the cgroup of a specification.
func Systemd(spec *specs.Spec) bool {
	if spec.Linux == nil {
		return false
	}
	_, _, ok := systemdPath(spec.Linux.CgroupsPath)
	return ok
}

// systemdPath takes runc's form SLICE:PREFIX:NAME apart; other paths are absolute.
func systemdPath(cgroupsPath string) (slice, rest string, ok bool) {
	slice, rest, ok = strings.Cut(cgroupsPath, ":")
	return slice, rest, ok && !strings.HasPrefix(cgroupsPath, "/")
}

// Dir is the directory by which the cgroup's processes are killed, see package kill; "" if the cgroup was never made.
func Dir(m cgroups.Manager) string {
	return cmp.Or(m.Path("freezer"), m.Path(""), m.Path("devices"))
}

// Empty kills all that is in the cgroup until it is empty.
func Empty(ctx context.Context, m cgroups.Manager) error {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	dir := Dir(m)
	if dir == "" {
		return nil
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := kill.Pids(dir)
		if err == nil && len(pids) == 0 {
			return nil
		}
		if err = errors.Join(err, kill.Tree(dir)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after SIGKILL %s: %w", cmp.Or(kill.Holders(dir), "all processes have ended"), context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// OOMKilled tells whether the kernel has killed a process in the cgroup for want of memory.
func OOMKilled(m cgroups.Manager) (bool, error) {
	n, err := m.OOMKillCount()
	if err != nil {
		return false, fmt.Errorf("read OOM kill count: %w", err)
	}
	return n > 0, nil
}
