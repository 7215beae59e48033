package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"

	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

// ErrVolume says that an image cannot be mounted into a container.
var ErrVolume = errors.New("image volume")

// Image volumes are read-only snapshots, mounted in the container's bundle for as long as it may run.

// volumeKey is the key of the snapshot of a container's n-th image volume.
func volumeKey(id, n string) string { return id + "-volume-" + n }

// Owner is the ID of the container that a snapshot is of.
func Owner(key string) string {
	id, _, _ := strings.Cut(key, "-volume-")
	return id
}

// MountVolumes mounts the image volumes of a container, in whose bundle they go, and returns where its workload is to see
// them. ErrVolume.
func (s *Store) MountVolumes(ctx context.Context, id string, viewer Viewer, volumes []want.ImageVolume) ([]spec.Mount, error) {
	if len(volumes) == 0 {
		return nil, nil
	}
	if err := os.Mkdir(s.volumes(id), 0o700); err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	var out []spec.Mount
	for n, v := range volumes {
		source, err := s.mountVolume(ctx, id, viewer, n, v)
		if err != nil {
			return nil, fmt.Errorf("%w %s on %s: %w", ErrVolume, v.ImageName, v.Destination, err)
		}
		out = append(out, spec.Mount{Source: source, Destination: v.Destination, ReadOnly: true, Options: v.Options})
	}
	return out, nil
}

func (s *Store) mountVolume(ctx context.Context, id string, viewer Viewer, n int, v want.ImageVolume) (source string, err error) {
	mounts, err := s.Snapshots.View(ctx, volumeKey(id, strconv.Itoa(n)), v.Layers)
	if err != nil {
		return "", fmt.Errorf("prepare snapshot: %w", err)
	}
	dir := filepath.Join(s.volumes(id), strconv.Itoa(n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	if err := s.mount(ctx, id, viewer, mounts, dir); err != nil {
		return "", err
	}
	if v.SubPath == "" {
		return dir, nil
	}
	// Nobody can change the tree between here and the mount.
	if source, err = securejoin.SecureJoin(dir, v.SubPath); err != nil {
		return "", fmt.Errorf("find %q in it: %w", v.SubPath, err)
	}
	if _, err := os.Lstat(source); err != nil {
		return "", fmt.Errorf("%q is not in it: %w", v.SubPath, errors.Unwrap(err))
	}
	return source, nil
}

// unmountVolumes is idempotent.
func (s *Store) unmountVolumes(id string) error {
	entries, err := os.ReadDir(s.volumes(id))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list image volumes: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		errs = append(errs, unmount(filepath.Join(s.volumes(id), entry.Name())))
	}
	return errors.Join(errs...)
}
