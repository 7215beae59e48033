package devmapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/syncfs"
	"criserver/pkg/snapshot/treecopy"
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

// image returns the device that snapshots of the layers begin as, and makes it if there is none. The caller has a snapshot of them with
// the lower driver.
func (s *Snapshotter) image(ctx context.Context, layers []digest.Digest) (record, error) {
	name := imageOf(layers)
	release, err := s.claims.Acquire(ctx, "image/"+name.String())
	if err != nil {
		return record{}, fmt.Errorf("copy image to a thin device: %w", err)
	}
	defer release()
	s.mu.Lock()
	id, ok := s.images[name]
	r := s.devices[id]
	s.mu.Unlock()
	if ok {
		return r, nil
	}
	if err := s.checkRoom(ctx, layers); err != nil {
		return record{}, err
	}
	r, err = s.allocateFrom(func() (record, error) { return s.baseDevice(ctx) }, func(record) record {
		return record{Kind: kindImage, Image: name, Layers: layers, Size: s.options.Size}
	})
	if err != nil {
		return record{}, err
	}
	logrus.WithFields(logrus.Fields{"image": name, "device": r.ID, "layers": len(layers)}).Info("an image is copied to a thin device")
	if r.Used, err = s.fillImage(ctx, r); err == nil {
		err = s.made(r)
	}
	if err != nil {
		return record{}, errors.Join(fmt.Errorf("copy image to a thin device: %w", err), s.abandon(r))
	}
	return r, nil
}

// checkRoom refuses an image that the pool has no space for, or that is larger than a device. It may turn out to be smaller: what one
// layer hides of another counts as well.
func (s *Snapshotter) checkRoom(ctx context.Context, layers []digest.Digest) error {
	left, err := s.pool.room()
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
			s.pool.name, left.free, left.total, need, unix.ENOSPC)
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
	if r, err = s.allocate(record{Kind: kindBase, Size: s.options.Size}, 0); err != nil {
		return record{}, fmt.Errorf("make an empty file system: %w", err)
	}
	if err = s.format(ctx, r); err == nil {
		err = s.made(r)
	}
	if err != nil {
		return record{}, errors.Join(fmt.Errorf("make an empty file system: %w", err), s.abandon(r))
	}
	return r, nil
}

// format makes the file system, without a directory that no image has.
func (s *Snapshotter) format(ctx context.Context, r record) error {
	info, err := s.pool.activate(r.ID, r.Size)
	if err != nil {
		return err
	}
	// Inode tables and journal take no blocks of the pool until they are used. A journal is written over and over, and by each
	// container into blocks of its own: it is small.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-J", "size=16", "-e", "remount-ro",
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
	return errors.Join(err, s.pool.deactivate(ctx, r.ID))
}

// fillImage copies what the layers show, and returns what that takes.
func (s *Snapshotter) fillImage(ctx context.Context, r record) (used snapshot.Usage, err error) {
	info, err := s.pool.activate(r.ID, r.Size)
	if err != nil {
		return used, err
	}
	key := viewPrefix + strconv.FormatUint(uint64(r.ID), 10)
	view, err := s.Lower.View(ctx, key, r.Layers)
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
	return used, errors.Join(err, s.Lower.Remove(undo, key), s.pool.deactivate(undo, r.ID))
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
	works, err := filepath.Glob(filepath.Join(s.root, workDir, "*"))
	if err != nil {
		return err
	}
	for _, dir := range works {
		if err := clearWork(dir); err != nil {
			return fmt.Errorf("clear away unfinished work: %w", err)
		}
	}
	return nil
}

// collect removes what is of no use: images of layers that are gone or of another size, and what they were being made of.
func (s *Snapshotter) collect(ctx context.Context) error {
	keys, err := s.Lower.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if strings.HasPrefix(key, viewPrefix) {
			if err := s.Lower.Remove(ctx, key); err != nil {
				return err
			}
		}
	}
	layers, err := s.Lower.ListLayers(ctx)
	if err != nil {
		return err
	}
	from := map[uint32]struct{}{}
	s.mu.Lock()
	for _, r := range s.devices {
		if r.Kind == kindRoot {
			from[r.From] = struct{}{}
		}
	}
	s.mu.Unlock()
	return s.abandonIf(func(r record) bool {
		switch _, used := from[r.ID]; r.Kind {
		case kindBase:
			return s.options.Size > 0 && r.Size != s.options.Size
		case kindImage:
			gone := slices.ContainsFunc(r.Layers, func(l digest.Digest) bool { return !slices.Contains(layers, l) })
			return !used && (gone || s.options.Size > 0 && r.Size != s.options.Size)
		}
		return false
	})
}
