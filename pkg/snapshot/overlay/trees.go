package overlay

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/syncfs"
)

// Tree implements snapshot.Trees.
func (s *Snapshotter) Tree(_ context.Context, diffID digest.Digest) (dir, meta string, err error) {
	record, ok := s.lookup(diffID)
	if !ok {
		return "", "", fmt.Errorf("layer %s: %w", diffID, snapshot.ErrNotFound)
	}
	err = errors.Join(s.present(diffID, layerTree, unix.S_IFDIR), s.present(diffID, layerFile, unix.S_IFREG))
	if record.Meta {
		err = errors.Join(err, s.present(diffID, layerMeta, unix.S_IFREG))
	}
	if err != nil {
		return "", "", err
	}
	path := s.layerPath(diffID)
	return filepath.Join(path, layerTree), filepath.Join(path, layerMeta), nil
}

// Changes implements snapshot.Changer.
func (s *Snapshotter) Changes(_ context.Context, key string, use func(dir string) error) error {
	dir, err := s.upper(key)
	if err != nil {
		return err
	}
	return use(dir)
}

func (s *Snapshotter) upper(key string) (string, error) {
	s.mu.Lock()
	record, ok := s.snapshots[key]
	s.mu.Unlock()
	if !ok || record.ReadOnly {
		return "", fmt.Errorf("writable layer of snapshot %s: %w", key, snapshot.ErrNotFound)
	}
	return filepath.Join(s.snapshotPath(key), upperDir), nil
}

// Fill implements snapshot.Filler.
func (s *Snapshotter) Fill(ctx context.Context, key string, unpack func(dir string) (implied []string, err error)) error {
	release, err := s.claims.Acquire(ctx, snapshotsDir+"/"+key)
	if err != nil {
		return fmt.Errorf("fill snapshot %s: %w", key, err)
	}
	defer release()
	upper, err := s.upper(key)
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	s.mu.Lock()
	layers, err := s.visible(s.snapshots[key].Layers)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("fill snapshot %s: %w", key, err)
	}
	implied, err := unpack(upper)
	if err != nil {
		return err
	}
	inherited, err := inheritance(ctx, append([]tree{newTree(upper, implied)}, s.trees(layers)...))
	if err != nil {
		return fmt.Errorf("fill snapshot %s: %w", key, err)
	}
	for _, dir := range inherited {
		if err := dir.copyTo(upper); err != nil {
			return fmt.Errorf("fill snapshot %s: %w", key, err)
		}
	}
	return nil
}

// Restage implements snapshot.Trees.
func (s *Snapshotter) Restage(_ context.Context, chain []digest.Digest) (snapshot.Stage, error) {
	diffID, err := topOf(chain)
	if err != nil {
		return nil, fmt.Errorf("stage layer again: %w", err)
	}
	if _, ok := s.lookup(diffID); !ok {
		return nil, fmt.Errorf("stage layer %s again: %w", diffID, snapshot.ErrNotFound)
	}
	st, err := s.newStage(diffID)
	if err != nil {
		return nil, err
	}
	st.again = true
	return st, nil
}

// replace puts the synced layer in the place of the one that is there. That one is kept as long as a snapshot may have it
// mounted: what the kernel does when a lower directory goes from under a mount is not defined (overlayfs.rst, "Changes to
// underlying filesystems").
func (st *stage) replace(record layerRecord) error {
	s := st.s
	if err := writeRecord(filepath.Join(st.path, layerFile), record, true); err != nil {
		return err
	}
	final := s.layerPath(st.diffID)
	aside := final + "." + s.unique("old")
	if err := unix.Rename(st.path, aside); err != nil {
		return fmt.Errorf("replace %s: %w", final, err)
	}
	// In one step, so that there is a layer of this name at any time, unless it has been deleted.
	err := unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, final, unix.RENAME_EXCHANGE)
	gone := errors.Is(err, unix.ENOENT)
	if gone {
		err = unix.Rename(aside, final)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", final, err), s.discard(aside))
	}
	synced := syncfs.Names(filepath.Dir(final)) // whatever comes of it, the new one is in place
	s.mu.Lock()
	l := s.layers[st.diffID]
	was, is := l.usage(), record.usage()
	s.layerTotal = s.layerTotal.Add(snapshot.Usage{Bytes: is.Bytes - was.Bytes, Inodes: is.Inodes - was.Inodes})
	l.layerRecord = record
	if !gone {
		l.old = append(l.old, aside)
	}
	unused := l.unused()
	s.mu.Unlock()
	return errors.Join(synced, s.discardAll(unused))
}

// unused takes out the replaced directories that no snapshot can have mounted. The caller holds the snapshotter's lock.
func (l *layer) unused() []string {
	if l.refs > 0 {
		return nil
	}
	old := l.old
	l.old = nil
	return old
}

func (s *Snapshotter) discardAll(paths []string) error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, s.discard(path))
	}
	return errors.Join(errs...)
}

// recoverOld takes in the directories that were replaced before the restart, once layers and snapshots are known.
func (s *Snapshotter) recoverOld() error {
	byName := map[string]*layer{}
	for diffID, l := range s.layers {
		byName[layerName(diffID)] = l
	}
	return s.eachEntry(layersDir, func(name, path string) error {
		of, _, replaced := strings.Cut(name, ".")
		if !replaced {
			return nil
		}
		l := byName[of]
		if l == nil || l.refs == 0 {
			return s.discard(path)
		}
		l.old = append(l.old, path)
		return nil
	})
}
