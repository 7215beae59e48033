// Package driver says who makes cgroups: this program by the file system, or systemd, on a node where that counts as their only
// writer. Which of them a cgroup is of is to be seen from its path: systemd's are units, ".slice" for pods and ".scope" for containers.
//
// Limits of what runs are in files in any case; systemd has to be told of them too, or it writes its own view of them again
// whenever it reloads.
package driver

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups/systemd"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/spec"
)

// Kind is a driver, by the name that kubelets have for it.
type Kind string

// The drivers.
const (
	Cgroupfs Kind = "cgroupfs"
	Systemd  Kind = "systemd"
)

const (
	slice = ".slice"
	scope = ".scope"
)

// Check tells why a driver cannot be used on this node.
func (k Kind) Check() error {
	switch k {
	case Cgroupfs:
		return nil
	case Systemd:
		if !systemd.IsRunningSystemd() {
			return errors.New("cgroup driver systemd: systemd does not run here")
		}
		return nil
	}
	return fmt.Errorf("cgroup driver %q is neither %s nor %s", k, Cgroupfs, Systemd)
}

// PodPath is the cgroup of a pod that comes without one, below root: with systemd, below the slice of that name.
func (k Kind) PodPath(root, id string) string {
	if k == Cgroupfs {
		return filepath.Join(root, id)
	}
	return filepath.Join(k.PodsPath(root), rootName(root)+"-"+id+slice)
}

// PodsPath is the cgroup above those that PodPath names.
func (k Kind) PodsPath(root string) string {
	if k == Cgroupfs {
		return root
	}
	expanded, err := systemd.ExpandSlice(rootName(root) + slice)
	if err != nil { // a name with dashes at its ends, or two together
		return "/" + rootName(root) + slice
	}
	return expanded
}

func rootName(root string) string { return path.Base(root) }

// PodOf is the pod that a child of PodsPath is of, by its name; "" if of none.
func (k Kind) PodOf(root, name string) string {
	if k == Cgroupfs {
		return name
	}
	id, ours := strings.CutPrefix(name, rootName(root)+"-")
	id, isSlice := strings.CutSuffix(id, slice)
	if !ours || !isSlice {
		return ""
	}
	return id
}

// CheckParent refuses the cgroup of a pod that the other driver has made.
func (k Kind) CheckParent(parent string) error {
	switch isSlice := spec.IsSlice(parent); {
	case parent == "" || isSlice == (k == Systemd):
		return nil
	case isSlice:
		return fmt.Errorf("%q is a systemd slice, but the cgroup driver is cgroupfs: set the kubelet's cgroupDriver to cgroupfs, or "+
			"criserver's runtime.cgroup_driver to systemd", parent)
	}
	return fmt.Errorf("%q is no systemd slice, but the cgroup driver is systemd: set the kubelet's cgroupDriver to systemd, or "+
		"criserver's runtime.cgroup_driver to cgroupfs", parent)
}

// ContainerPath is the cgroup of a container in that of its pod, as spec.CgroupsPath has the runtime make it.
func ContainerPath(pod, id string) string {
	if spec.IsSlice(pod) {
		return filepath.Join(pod, spec.ScopePrefix+"-"+id+scope)
	}
	return filepath.Join(pod, id)
}

// Make makes a pod's cgroup, which may be there, and parents that are not. What is above a slice is systemd's.
func Make(ctx context.Context, parents *cgroup.Parents, pod string) error {
	if !spec.IsSlice(pod) {
		return parents.Create(pod)
	}
	if cgroup.Exists(pod) {
		return nil
	}
	return startSlice(ctx, pod)
}

// Remove removes a pod's cgroup and all below it, whose processes are gone. It is idempotent.
func Remove(ctx context.Context, pod string) error {
	if spec.IsSlice(pod) && cgroup.Exists(pod) {
		if err := stopUnit(ctx, path.Base(pod)); err != nil {
			return err
		}
	}
	return cgroup.Remove(pod)
}

// Prune removes a pod's cgroup if nothing is in it, and then the parents that were made with it or with a pod beside it, if this process
// has made them; else it does nothing.
func Prune(ctx context.Context, parents *cgroup.Parents, pod string) {
	if spec.IsSlice(pod) && cgroup.Exists(pod) {
		if children, err := cgroup.Children(pod); err == nil && len(children) == 0 {
			_ = stopUnit(ctx, path.Base(pod))
		}
	}
	parents.Prune(pod)
}
