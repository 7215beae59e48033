package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/selinux/go-selinux/label"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/volume"
	"criserver/pkg/sandbox/want"
	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/treecopy"
)

// The volumes that an image declares are directories beside the writable layer of the container, and go with it. They are copies of
// what the image has there, and not overlays of it: images that keep file systems or databases in a volume count on it being none.

// imageView is the key, after that of a volume, of the image as it is read for its volumes.
const imageView = "image"

// DeclareVolumes makes the volumes that an image declares where no mount is, and returns them as mounts. fill puts into them what a
// container had there that is restored, and tells whether there was anything; nil if it is not.
func (s *Store) DeclareVolumes(
	ctx context.Context, id string, viewer Viewer, img want.Image, mounts []spec.Mount, fill func() (bool, error),
) ([]spec.Mount, error) {
	if len(img.Config.Volumes) == 0 || s.IgnoreDeclared {
		return nil, nil
	}
	destinations := make([]string, len(mounts))
	for i, m := range mounts {
		destinations[i] = m.Destination
	}
	volumes, ignored, err := volume.Of(s.RootFS(id), img.Config.Volumes, destinations)
	for _, v := range ignored {
		if v.Reason != "" {
			logrus.WithFields(logrus.Fields{"container": id, "image": img.Ref, "path": v.Path, "reason": v.Reason}).
				Warn("a volume that the image declares is ignored")
		}
	}
	if err != nil || len(volumes) == 0 {
		return nil, err
	}
	var out []spec.Mount
	var dirs []string
	for _, v := range volumes {
		dir, err := s.Snapshots.Volume(ctx, id, v.Name)
		if err != nil {
			return nil, fmt.Errorf("make volume %s: %w", v.Destination, err)
		}
		dirs = append(dirs, dir)
		out = append(out, spec.Mount{Source: dir, Destination: v.Destination, Users: viewer.Pod.Users})
	}
	filled := false
	if fill != nil {
		if filled, err = fill(); err != nil {
			return nil, err
		}
	}
	if !filled {
		if err := s.copyContent(ctx, id, viewer, img, volumes, dirs); err != nil {
			return nil, err
		}
	}
	return out, labelVolumes(dirs, viewer.MountLabel)
}

// copyContent gives the volumes what the image has in their places.
func (s *Store) copyContent(ctx context.Context, id string, viewer Viewer, img want.Image, volumes []volume.Volume, dirs []string) error {
	root := s.RootFS(id)
	from := root
	if viewer.Pod.Users != nil { // there all have other owners, and on disk those that the container sees
		var err error
		if from, err = s.viewImage(ctx, id, img); err != nil {
			return fmt.Errorf("read the image's volumes: %w", err)
		}
	}
	for i, v := range volumes {
		if v.Content == "" {
			continue
		}
		if err := treecopy.Tree(ctx, filepath.Join(from, v.Destination), dirs[i]); err != nil {
			return fmt.Errorf("copy the image's content of volume %s: %w", v.Destination, err)
		}
	}
	if from == root {
		return nil
	}
	return errors.Join(s.whileMounting(ctx, id, func() error { return unmount(from) }), s.Snapshots.Remove(ctx, volumeKey(id, imageView)))
}

// viewImage mounts the image as it is on disk.
func (s *Store) viewImage(ctx context.Context, id string, img want.Image) (string, error) {
	mounts, err := s.Snapshots.View(ctx, volumeKey(id, imageView), img.Layers)
	if err != nil {
		return "", err
	}
	target := filepath.Join(s.volumes(id), imageView)
	if err := os.MkdirAll(target, 0o700); err != nil {
		return "", err
	}
	return target, s.whileMounting(ctx, id, func() error { return snapshot.MountAll(mounts, target) })
}

// labelVolumes gives the volumes the SELinux label of all that the container sees.
func labelVolumes(dirs []string, mountLabel string) error {
	if mountLabel == "" {
		return nil
	}
	for _, dir := range dirs {
		if err := label.Relabel(dir, mountLabel, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("label volume %s: %w", dir, err)
		}
	}
	return nil
}
