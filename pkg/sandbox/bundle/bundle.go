// Package bundle keeps the files of containers: the OCI bundle with its specification, the mounts of the root file system and of
// image volumes, and the snapshots that these are of. Every removal is idempotent.
package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"criserver/pkg/claim"
	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/specfile"
	"criserver/pkg/snapshot"
	"criserver/pkg/waiting"
)

// Snapshots gives containers their file systems; see snapshot.Snapshotter and snapshot.Volumes.
type Snapshots interface {
	// Prepare makes a snapshot by a driver, "" being the node's.
	Prepare(ctx context.Context, driver, key string, layers []digest.Digest) ([]snapshot.Mount, error)
	View(ctx context.Context, key string, layers []digest.Digest) ([]snapshot.Mount, error)
	Remove(ctx context.Context, key string) error
	Snapshots(ctx context.Context) ([]string, error)
	Volume(ctx context.Context, key, name string) (dir string, err error)
}

// Store holds the bundles below a directory, by the IDs of containers. Who is root in a container's user namespace passes Root, and
// of what is in it nothing but the bundle of that container.
type Store struct {
	Root      string
	Snapshots Snapshots
	// IgnoreDeclared makes no volumes that images declare.
	IgnoreDeclared bool

	mounting claim.Claims // by the IDs of containers
}

// Dir is a container's bundle, RootFS where its root file system is mounted.
func (s *Store) Dir(id string) string    { return filepath.Join(s.Root, id) }
func (s *Store) RootFS(id string) string { return filepath.Join(s.Root, id, "rootfs") }

func (s *Store) volumes(id string) string { return filepath.Join(s.Root, id, "volumes") }

// empty is a directory that is mounted where there is nothing.
func (s *Store) empty(id string) string { return filepath.Join(s.Root, id, "empty") }

// Viewer is who sees the file systems of a container.
type Viewer struct {
	// Pod is the container's.
	Pod spec.Pod
	// MountLabel is the SELinux label of all that it sees; "" is none.
	MountLabel string
	// Snapshotter is the driver that makes its root file system; "" is the node's.
	Snapshotter string
}

// Make makes the bundle of a container, with its root file system mounted. fill, if not nil, is called before that, for what the
// container has written already.
func (s *Store) Make(ctx context.Context, id string, v Viewer, layers []digest.Digest, fill func() error) error {
	mounts, err := s.Snapshots.Prepare(ctx, v.Snapshotter, id, layers)
	if err != nil {
		return fmt.Errorf("prepare snapshot: %w", err)
	}
	if fill != nil {
		if err := fill(); err != nil {
			return err
		}
	}
	if err := idmap.Mkdir(s.Dir(id), v.Pod.Users); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if err := os.Mkdir(s.RootFS(id), 0o711); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if err := s.mount(ctx, id, v, mounts, s.RootFS(id)); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	return nil
}

// mount mounts a snapshot of the container's.
func (s *Store) mount(ctx context.Context, id string, v Viewer, mounts []snapshot.Mount, target string) error {
	return s.whileMounting(ctx, id, func() error { return s.mountFor(id, v, mounts, target) })
}

// whileMounting does what the kernel may take as long for as a device does not answer. Then that goes on beyond the end of ctx, and
// nothing else is mounted or unmounted for the container before it has ended.
func (s *Store) whileMounting(ctx context.Context, id string, call func() error) error {
	release, err := s.mounting.Acquire(ctx, id)
	if err != nil {
		return fmt.Errorf("the kernel has not ended an earlier mount or unmount: %w", err)
	}
	_, err = waiting.For(ctx, func() (struct{}, error) {
		defer release()
		return struct{}{}, call()
	})
	return err
}

// mountFor mounts as a container sees it.
func (s *Store) mountFor(id string, v Viewer, mounts []snapshot.Mount, target string) error {
	mount := snapshot.MountAll
	if users := v.Pod.Users; users != nil {
		uid, gid := users.Root()
		mount = func(mounts []snapshot.Mount, target string) error {
			return snapshot.MountMapped(mounts, target, snapshot.IDMap{UserNS: v.Pod.UserNS, UID: uid, GID: gid})
		}
	}
	if v.MountLabel == "" {
		return mount(mounts, target)
	}
	var empty string
	if v.Pod.Users == nil { // overlays of mapped layers are of one file system, which this directory is not on
		empty = s.empty(id)
		if err := os.Mkdir(empty, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make bundle: %w", err)
		}
	}
	if err := mount(snapshot.Labelled(mounts, v.MountLabel, empty), target); err != nil {
		return err
	}
	// What is mounted with a label says that it has it already. The directory of an image without layers has not.
	if err := label.SetFileLabel(target, v.MountLabel); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("label %s: %w", target, err)
	}
	return nil
}

// Mounted tells whether the root file system is mounted.
func (s *Store) Mounted(id string) bool {
	ok, err := mountinfo.Mounted(s.RootFS(id))
	return err == nil && ok
}

// Unmount removes the mounts.
func (s *Store) Unmount(ctx context.Context, id string) error {
	err := s.whileMounting(ctx, id, func() error { return errors.Join(s.unmountVolumes(id), unmount(s.RootFS(id))) })
	if err != nil {
		return fmt.Errorf("unmount container %s: %w", id, err)
	}
	return nil
}

// Remove removes the bundle, which is unmounted, and its snapshots.
func (s *Store) Remove(ctx context.Context, id string) error {
	var errs []error
	keys, err := s.Snapshots.Snapshots(ctx)
	if err != nil {
		errs = append(errs, fmt.Errorf("list snapshots: %w", err))
	}
	for _, key := range slices.DeleteFunc(keys, func(key string) bool { return Owner(key) != id }) {
		if err := s.Snapshots.Remove(ctx, key); err != nil {
			errs = append(errs, fmt.Errorf("remove snapshot: %w", err))
		}
	}
	if err := os.RemoveAll(s.Dir(id)); err != nil {
		errs = append(errs, fmt.Errorf("remove bundle: %w", err))
	}
	return errors.Join(errs...)
}

// unmount removes a mount and its mount point.
func unmount(path string) error {
	if err := snapshot.Unmount(path); err != nil {
		return err
	}
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove mount point %s: %w", path, err)
	}
	return nil
}

// WriteSpec writes the specification of a container (OCI runtime-spec, config.md).
func (s *Store) WriteSpec(id string, out *specs.Spec) error {
	return specfile.Write(s.Dir(id), out)
}

// Spec reads the specification of a container.
func (s *Store) Spec(id string) (*specs.Spec, error) {
	out := &specs.Spec{}
	return out, specfile.Decode(s.Dir(id), out)
}

// Score is the oom_score_adj of a container's processes, as its specification says.
func (s *Store) Score(id string) (int, error) {
	p, err := s.Process(id)
	if err != nil || p == nil || p.OOMScoreAdj == nil {
		return 0, err
	}
	return *p.OOMScoreAdj, nil
}

// SetScore makes the specification say another.
func (s *Store) SetScore(id string, score int) error {
	out, err := s.Spec(id)
	if err != nil {
		return err
	}
	out.Process.OOMScoreAdj = &score
	return s.WriteSpec(id, out)
}

// Process reads the process of a container's specification, the model of every command that is run in it.
func (s *Store) Process(id string) (*specs.Process, error) {
	var v struct {
		Process *specs.Process `json:"process"`
	}
	err := specfile.Decode(s.Dir(id), &v)
	return v.Process, err
}
