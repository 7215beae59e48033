package devmapper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/flight"
	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/devmapper/dm"
	"criserver/pkg/snapshot/syncfs"
	"criserver/pkg/snapshot/treecopy"
	"criserver/pkg/waiting"
)

const (
	mkfs   = "mkfs.ext4"
	fsType = "ext4"
)

// imageOf names what a list of layers shows.
func imageOf(layers []digest.Digest) digest.Digest {
	var b strings.Builder
	for _, l := range layers {
		b.WriteString(l.String() + "\n")
	}
	return digest.FromString(b.String())
}

// copyLimit is for the copy of an image to a thin device, which goes on when nobody waits for it any more.
const copyLimit = time.Hour

// image returns the device that snapshots of the layers begin as, and makes it if there is none.
func (s *Snapshotter) image(ctx context.Context, layers []digest.Digest) (record, error) {
	name := imageOf(layers)
	if r, ok := s.findImage(name); ok {
		return r, nil
	}
	flight.Stage(ctx, "its image is copied to a thin device")
	r, err := s.copies.Do(ctx, name, copyLimit, func(ctx context.Context) (record, error) {
		for {
			if r, ok := s.findImage(name); ok {
				return r, nil
			}
			if r, err := s.makeImage(ctx, name, layers); !errors.Is(err, errRetired) {
				return r, err
			}
		}
	})
	if err != nil {
		return record{}, fmt.Errorf("copy image to a thin device: %w", err)
	}
	return r, nil
}

func (s *Snapshotter) findImage(name digest.Digest) (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.images[name]
	return s.devices[id], ok
}

// makeImage makes the device of an image. errRetired: a layer was replaced meanwhile.
func (s *Snapshotter) makeImage(ctx context.Context, name digest.Digest, layers []digest.Digest) (record, error) {
	if err := s.checkRoom(ctx, layers); err != nil {
		return record{}, err
	}
	flight.Stage(ctx, fmt.Sprintf("an image of %d layers is being copied", len(layers)))
	trees, err := s.trees(ctx, layers) // before they are read
	if err != nil {
		return record{}, err
	}
	r, err := s.allocateFrom(func() (record, error) { return s.baseDevice(ctx) }, func(base record) record {
		return record{
			Pool: base.Pool, Kind: kindImage, Image: name, Layers: layers, Trees: trees, Size: base.Size, FileSystem: base.FileSystem,
		}
	})
	if err != nil {
		return record{}, err
	}
	logrus.WithFields(logrus.Fields{"image": name, "device": r.ID, "layers": len(layers)}).Info("an image is copied to a thin device")
	if r.Used, err = s.fillImage(ctx, r); err == nil {
		err = s.made(r)
	}
	if err != nil {
		s.abandon(r)
		return record{}, err
	}
	return r, nil
}

// trees identify what layers are on disk: one that is replaced after it was damaged is another tree.
func (s *Snapshotter) trees(ctx context.Context, layers []digest.Digest) ([]string, error) {
	out := make([]string, len(layers))
	for i, l := range layers {
		dir, _, err := s.Lower.Tree(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("find layer: %w", err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(dir, &st); err != nil {
			return nil, fmt.Errorf("find layer: %w", &os.PathError{Op: "lstat", Path: dir, Err: err})
		}
		out[i] = fmt.Sprintf("%d %d.%09d", st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
	}
	return out, nil
}

// replaced tells whether an image is of a layer that has been replaced since.
func (s *Snapshotter) replaced(ctx context.Context, image record) (bool, error) {
	now, err := s.trees(ctx, image.Layers)
	if errors.Is(err, snapshot.ErrDamaged) { // by now; the image is as good as it was
		return false, nil
	}
	return err == nil && !slices.Equal(now, image.Trees), err
}

// checkRoom refuses an image that the pool has no space for, or that is larger than a device. It may turn out to be smaller: what one
// layer hides of another counts as well.
func (s *Snapshotter) checkRoom(ctx context.Context, layers []digest.Digest) error {
	left, err := s.pool().room()
	if err != nil {
		return err
	}
	var need int64
	for i := range layers {
		usage, err := s.Lower.Layer(ctx, layers[:i+1])
		if err != nil {
			return fmt.Errorf("measure layer: %w", err)
		}
		need += usage.Bytes
	}
	if need > left.free {
		return fmt.Errorf("the thin pool %s has %d bytes left, of %d, and the image may take %d: %w; make it larger, or remove containers and images",
			s.options.Pool, left.free, left.total, need, unix.ENOSPC)
	}
	return nil
}

// baseDevice returns the device with an empty file system, and makes it if there is none.
func (s *Snapshotter) baseDevice(ctx context.Context) (record, error) {
	release, err := s.claims.Acquire(ctx, "base")
	if err != nil {
		return record{}, fmt.Errorf("make an empty file system: %w", err)
	}
	defer release()
	s.mu.Lock()
	r, ok := s.devices[s.base]
	s.mu.Unlock()
	if ok {
		return r, nil
	}
	r = record{Pool: s.options.Pool, Kind: kindBase, Size: s.options.Size, FileSystem: newUUID()}
	if r, err = s.allocate(r, 0); err != nil {
		return record{}, fmt.Errorf("make an empty file system: %w", err)
	}
	if err = s.format(ctx, r); err == nil {
		err = s.made(r)
	}
	if err != nil {
		s.abandon(r)
		return record{}, fmt.Errorf("make an empty file system: %w", err)
	}
	return r, nil
}

// format makes the file system, without a directory that no image has.
func (s *Snapshotter) format(ctx context.Context, r record) error {
	info, err := s.activate(ctx, r)
	if err != nil {
		return err
	}
	// Inode tables and journal take no blocks of the pool until they are used. A journal is written over and over, and by each
	// container into blocks of its own: it is small.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-U", r.FileSystem, "-m", "0", "-I", "256", "-J", "size=16", "-e", "remount-ro",
		"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", info.Path())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", mkfs, err, strings.TrimSpace(string(out)))
	}
	err = s.withWork(r.ID, func(dir string) error {
		return mounted(mountsOf(info.Path()), filepath.Join(dir, workTo), func(root string) error {
			if err := os.Remove(filepath.Join(root, "lost+found")); err != nil {
				return err
			}
			return syncfs.FileSystem(root)
		})
	})
	return errors.Join(err, s.deactivate(ctx, r))
}

// fillImage copies what the layers show, and returns what that takes.
func (s *Snapshotter) fillImage(ctx context.Context, r record) (used snapshot.Usage, err error) {
	info, err := s.activate(ctx, r)
	if err != nil {
		return used, err
	}
	view, err := s.Lower.View(ctx, viewKey(r), r.Layers)
	if err != nil {
		return used, fmt.Errorf("look at the layers: %w", err)
	}
	err = s.withWork(r.ID, func(dir string) error {
		return mounted(view, filepath.Join(dir, workFrom), func(from string) error {
			return mounted(mountsOf(info.Path()), filepath.Join(dir, workTo), func(to string) error {
				used, err = copyImage(ctx, from, to)
				return err
			})
		})
	})
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w (a device has %d bytes, snapshot.devmapper.size)", err, r.Size)
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	return used, errors.Join(err, s.Lower.Remove(undo, viewKey(r)), s.deactivate(undo, r))
}

func copyImage(ctx context.Context, from, to string) (snapshot.Usage, error) {
	if err := treecopy.Tree(ctx, from, to); err != nil {
		return snapshot.Usage{}, err
	}
	if err := syncfs.FileSystem(to); err != nil {
		return snapshot.Usage{}, err
	}
	return fileSystemUsage(to)
}

// In the directory of a device that is worked on:
const (
	workFrom    = "from" // mount points
	workTo      = "to"
	workChanges = "changes" // files
)

// withWork calls use with a directory for what is done with a device, which is empty, and removed afterwards.
func (s *Snapshotter) withWork(id uint32, use func(dir string) error) error {
	dir := filepath.Join(s.root, workDir, strconv.FormatUint(uint64(id), 10))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(use(dir), clearWork(dir))
}

// clearWork removes such a directory, with what a process that was killed had mounted there. Nothing is removed by way of a mount.
func clearWork(dir string) error {
	for _, name := range []string{workFrom, workTo} {
		path := filepath.Join(dir, name)
		if err := snapshot.Unmount(path); err != nil {
			return err
		}
		if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove mount point %s: %w", path, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, workChanges)); err != nil {
		return err
	}
	return os.Remove(dir)
}

// mounted calls use with a directory that has the mounts on it meanwhile.
func mounted(mounts []snapshot.Mount, dir string, use func(dir string) error) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := snapshot.MountAll(mounts, dir); err != nil {
		return err
	}
	return errors.Join(use(dir), snapshot.Unmount(dir))
}

// clearWorks takes away what a process that was killed had been working on.
func (s *Snapshotter) clearWorks() error {
	works, err := os.ReadDir(filepath.Join(s.root, workDir))
	if err != nil {
		return fmt.Errorf("clear away unfinished work: %w", err)
	}
	for _, work := range works {
		if err := clearWork(filepath.Join(s.root, workDir, work.Name())); err != nil {
			return fmt.Errorf("clear away unfinished work: %w", err)
		}
	}
	return nil
}

// dropUnknown abandons the snapshots that the lower driver does not know: they were removed, or lost with the power.
func (s *Snapshotter) dropUnknown(lower []string) {
	for _, id := range slices.Collect(maps.Values(s.roots)) { // nobody else is there yet
		if r := s.devices[id]; !slices.Contains(lower, rootPrefix+r.Key) {
			s.abandon(r)
		}
	}
}

// collect lets go what is of no use: images of layers that are gone or replaced, of another pool or size, and what they were being made of.
func (s *Snapshotter) collect(ctx context.Context, lower []string) error {
	for _, key := range lower {
		if strings.HasPrefix(key, viewPrefix) {
			if err := s.Lower.Remove(ctx, key); err != nil {
				logrus.WithError(err).WithField("key", key).Warn("what an image was being copied from cannot be removed")
			}
		}
	}
	layers, err := s.Lower.ListLayers(ctx)
	if err != nil {
		return err
	}
	moved, err := s.moved(ctx)
	if err != nil {
		return err
	}
	useless := map[uint32]bool{}
	for id, r := range s.devices {
		switch other := s.options.Pool != "" && r.Pool != s.options.Pool; {
		case r.Step != stepMade, r.Kind != kindBase && r.Kind != kindImage:
		case other:
			useless[id] = moved
		case s.options.Pool != "" && r.Size != s.options.Size,
			slices.ContainsFunc(r.Layers, func(l digest.Digest) bool { return !slices.Contains(layers, l) }):
			useless[id] = true
		default:
			if useless[id], err = s.replaced(ctx, r); err != nil {
				logrus.WithError(err).WithField("image", r.Image).Warn("whether a layer has been replaced is not known; the copy of the image is kept")
			}
		}
	}
	s.retireIf(func(r record) bool { return useless[r.ID] })
	return nil
}

// moved tells whether the configured pool is there, so that what is in another one is of no use. A name that was mistyped costs nothing.
func (s *Snapshotter) moved(ctx context.Context) (bool, error) {
	if s.options.Pool == "" {
		return false, nil
	}
	_, err := waiting.For(ctx, func() (dm.Target, error) { return s.pool().status() })
	if errors.Is(err, dm.ErrNotFound) || errors.Is(err, dm.ErrNone) || errors.Is(err, errNoPool) {
		return false, nil
	}
	return err == nil, err
}
