package devmapper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/devmapper/dm"
	"criserver/pkg/waiting"
)

// fileSystemUsage is what has been used of the file system that is mounted on dir, from its counters.
func fileSystemUsage(dir string) (snapshot.Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return snapshot.Usage{}, fmt.Errorf("usage of file system %s: %w", dir, err)
	}
	return snapshot.Usage{Bytes: int64(st.Blocks-st.Bfree) * st.Bsize, Inodes: int64(st.Files - st.Ffree)}, nil
}

// Usage implements snapshot.Accountant: what the file system of a snapshot has more than its image, and what the volumes have. It is
// counted where the snapshot is mounted; of one that is not, it is what was counted last.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshot.Measurement, error) {
	r, ok := s.find(key)
	lower, err := s.Lower.Usage(ctx, lowerKey(key, ok))
	if err != nil || !ok {
		return lower, err
	}
	own, err := waiting.For(ctx, func() (snapshot.Measurement, error) { return s.measure(r) })
	if err != nil {
		return snapshot.Measurement{}, fmt.Errorf("usage of snapshot %s: %w", key, err)
	}
	return lower.Add(own), nil
}

// Totals implements snapshot.Accountant.
func (s *Snapshotter) Totals(ctx context.Context) (snapshot.Totals, error) {
	totals, err := s.Lower.Totals(ctx)
	if err != nil {
		return totals, err
	}
	s.mu.Lock()
	roots := make([]record, 0, len(s.roots))
	for _, id := range s.roots {
		roots = append(roots, s.devices[id])
	}
	s.mu.Unlock()
	totals.Apart, err = waiting.For(ctx, func() (snapshot.Measurement, error) {
		sum := snapshot.Measurement{Measured: time.Now()}
		for _, r := range roots {
			own, err := s.measure(r)
			if err != nil {
				return sum, err
			}
			sum = sum.Add(own)
		}
		return sum, nil
	})
	if err != nil {
		return totals, fmt.Errorf("usage of all snapshots: %w", err)
	}
	return totals, nil
}

func (s *Snapshotter) measure(r record) (snapshot.Measurement, error) {
	path, err := s.mountPoint(r)
	if err != nil {
		return snapshot.Measurement{}, err
	}
	s.mu.Lock()
	last := s.measured[r.ID]
	s.mu.Unlock()
	if path == "" {
		return last, nil
	}
	now, err := fileSystemUsage(path)
	if err != nil {
		return snapshot.Measurement{}, err
	}
	m := snapshot.Measurement{Measured: time.Now(), Usage: snapshot.Usage{
		Bytes: max(now.Bytes-r.Used.Bytes, 0), Inodes: max(now.Inodes-r.Used.Inodes, 0),
	}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.devices[r.ID]; ok {
		s.measured[r.ID] = m
	}
	return m, nil
}

// mountPoint finds where the device is mounted; "" is nowhere.
func (s *Snapshotter) mountPoint(r record) (string, error) {
	info, err := dm.Find(r.pool().deviceName(r.ID))
	if errors.Is(err, dm.ErrNotFound) || errors.Is(err, dm.ErrNone) { // then nothing of it can be mounted
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	path := s.mounted[r.ID]
	s.mu.Unlock()
	var st unix.Stat_t
	if path != "" && unix.Lstat(path, &st) == nil && st.Dev == unix.Mkdev(info.Major, info.Minor) {
		return path, nil
	}
	there, err := mountOf(info)
	if err != nil || there == nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounted[r.ID] = there.Mountpoint
	return there.Mountpoint, nil
}

// mountOf finds a mount of a device; nil if there is none.
func mountOf(d dm.Info) (*mountinfo.Info, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		is := uint32(m.Major) == d.Major && uint32(m.Minor) == d.Minor
		return !is, is
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}
