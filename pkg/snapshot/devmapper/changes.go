package devmapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/treecopy"
	"criserver/pkg/waiting"
)

// Changes implements snapshot.Changer: the file system is compared with what it began as, and what differs is copied beside the layers.
func (s *Snapshotter) Changes(ctx context.Context, key string, use func(dir string) error) error {
	ours, err := s.workOn(ctx, "changes of", key, func(r record) error { return s.changes(ctx, r, use) })
	if ours || err != nil {
		return err
	}
	return s.Lower.Changes(ctx, key, use)
}

// Fill implements snapshot.Filler.
func (s *Snapshotter) Fill(ctx context.Context, key string, unpack func(dir string) (implied []string, err error)) error {
	ours, err := s.workOn(ctx, "fill", key, func(r record) error { return s.fill(ctx, r, unpack) })
	if ours || err != nil {
		return err
	}
	return s.Lower.Fill(ctx, key, unpack)
}

// workOn does what takes its time with the file system of a snapshot, while nobody else has the key; false if it is none of this
// driver's.
func (s *Snapshotter) workOn(ctx context.Context, what, key string, work func(record) error) (bool, error) {
	release, err := s.claims.Acquire(ctx, "snapshot/"+key)
	if err != nil {
		return false, fmt.Errorf("%s snapshot: %w", what, err)
	}
	r, ok := s.find(key)
	if !ok {
		release()
		return false, nil
	}
	_, err = waiting.For(ctx, func() (struct{}, error) {
		defer release()
		return struct{}{}, work(r)
	})
	if err != nil {
		return true, fmt.Errorf("%s snapshot %s: %w", what, key, err)
	}
	return true, nil
}

func (s *Snapshotter) changes(ctx context.Context, r record, use func(dir string) error) error {
	view, err := s.allocate(record{Pool: r.Pool, Kind: kindView, Size: r.Size, FileSystem: r.FileSystem}, r.From)
	if errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("the image that it began as is not in the thin pool any more: %w", err)
	}
	if err != nil {
		return err
	}
	defer s.abandon(view)
	before, err := s.activate(ctx, view)
	if err != nil {
		return err
	}
	after, err := s.mountsAgain(ctx, r)
	if err != nil {
		return err
	}
	return s.withWork(view.ID, func(dir string) error {
		changes := filepath.Join(dir, workChanges)
		if err := os.Mkdir(changes, 0o755); err != nil {
			return err
		}
		err := mounted(mountsOf(before.Path(), "ro"), filepath.Join(dir, workFrom), func(from string) error {
			return mounted(after, filepath.Join(dir, workTo), func(to string) error {
				return treecopy.Changes(ctx, from, to, changes)
			})
		})
		if err != nil {
			return err
		}
		return use(changes)
	})
}

// mountsAgain describes the file system of a snapshot for another mount while it is mounted already: the kernel wants the same label on
// both.
func (s *Snapshotter) mountsAgain(ctx context.Context, r record) ([]snapshot.Mount, error) {
	info, err := s.activate(ctx, r)
	if err != nil {
		return nil, err
	}
	mounts := mountsOf(info.Path())
	there, err := mountOf(info)
	if err != nil || there == nil {
		return mounts, err
	}
	if _, label, ok := strings.Cut(there.VFSOptions, "context="); ok {
		if quoted, ok := strings.CutPrefix(label, `"`); ok {
			label, _, _ = strings.Cut(quoted, `"`)
		} else {
			label, _, _ = strings.Cut(label, ",")
		}
		mounts = snapshot.Labelled(mounts, label, "")
	}
	return mounts, nil
}

func (s *Snapshotter) fill(ctx context.Context, r record, unpack func(dir string) (implied []string, err error)) error {
	info, err := s.activate(ctx, r)
	if err != nil {
		return err
	}
	return s.withWork(r.ID, func(dir string) error {
		changes := filepath.Join(dir, workChanges)
		if err := os.Mkdir(changes, 0o755); err != nil {
			return err
		}
		names, err := unpack(changes)
		if err != nil {
			return err
		}
		implied := make(map[string]bool, len(names))
		for _, name := range names {
			implied[filepath.Clean(name)] = true
		}
		return mounted(mountsOf(info.Path()), filepath.Join(dir, workTo), func(to string) error {
			return treecopy.Apply(ctx, changes, to, implied)
		})
	})
}
