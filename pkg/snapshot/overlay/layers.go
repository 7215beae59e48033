package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/syncfs"
	"criserver/pkg/snapshot/treecopy"
)

// layer is a committed layer.
type layer struct {
	layerRecord
	refs int      // snapshots made of it
	old  []string // directories that it has replaced
}

func (l layerRecord) usage() snapshot.Usage { return snapshot.Usage{Bytes: l.Bytes, Inodes: l.Inodes} }

// nameLen makes 128 layers fit into mount(2)'s page. Who can find two diffIDs that agree in these 96 bits has two
// layers that cannot be stored at the same time, no more: records hold the whole diffID.
const nameLen = 24

func layerName(diffID digest.Digest) string {
	return diffID.Encoded()[:nameLen]
}

func (s *Snapshotter) layerPath(diffID digest.Digest) string {
	return filepath.Join(s.root, layersDir, layerName(diffID))
}

func checkDiffID(diffID digest.Digest) error {
	if err := diffID.Validate(); err != nil {
		return fmt.Errorf("diffID %q: %w: %w", diffID, snapshot.ErrInvalid, err)
	}
	return nil
}

// topOf checks a chain and returns its uppermost layer.
func topOf(chain []digest.Digest) (digest.Digest, error) {
	if len(chain) == 0 {
		return "", fmt.Errorf("empty chain of layers: %w", snapshot.ErrInvalid)
	}
	top := chain[len(chain)-1]
	return top, checkDiffID(top)
}

func (s *Snapshotter) lookup(diffID digest.Digest) (layerRecord, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.layers[diffID]
	if !ok {
		return layerRecord{}, false
	}
	return l.layerRecord, true
}

// Stage implements snapshot.Layers. The lower layers are ignored. The stage implements snapshot.Inheritor.
func (s *Snapshotter) Stage(ctx context.Context, chain []digest.Digest) (snapshot.Stage, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("stage layer: %w", err)
	}
	diffID, err := topOf(chain)
	if err != nil {
		return nil, fmt.Errorf("stage layer: %w", err)
	}
	if _, ok := s.lookup(diffID); ok {
		return nil, fmt.Errorf("stage layer %s: %w", diffID, snapshot.ErrExists)
	}
	return s.newStage(diffID)
}

func (s *Snapshotter) newStage(diffID digest.Digest) (*stage, error) {
	st := &stage{s: s, diffID: diffID, path: s.stagePath(layerName(diffID))}
	if err := mkdir(st.path, 0o700); err != nil {
		return nil, fmt.Errorf("stage layer %s: %w", diffID, err)
	}
	if err := mkdir(st.Dir(), 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("stage layer %s: %w", diffID, err), s.discard(st.path))
	}
	return st, nil
}

// stage implements snapshot.Stage and snapshot.Inheritor.
type stage struct {
	s      *Snapshotter
	diffID digest.Digest
	path   string
	again  bool // it is to replace a layer

	mu      sync.Mutex
	implied []string
	ended   bool
}

func (st *stage) Dir() string  { return filepath.Join(st.path, layerTree) }
func (st *stage) Meta() string { return filepath.Join(st.path, layerMeta) }

// Inherit leaves out the root, which is never implied, and what is not a path below it.
func (st *stage) Inherit(implied []string) {
	names := make([]string, 0, len(implied))
	for _, name := range implied {
		if name = filepath.Clean(name); name != "." && filepath.IsLocal(name) {
			names = append(names, name)
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.implied = names
}

// end says whether the stage was open, and that it no longer is.
func (st *stage) end() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	open := !st.ended
	st.ended = true
	return open
}

func (st *stage) Abort(context.Context) error {
	if !st.end() {
		return nil
	}
	if err := st.s.discard(st.path); err != nil {
		return fmt.Errorf("abort layer %s: %w", st.diffID, err)
	}
	return nil
}

func (st *stage) Commit(ctx context.Context, usage snapshot.Usage) error {
	st.mu.Lock()
	record := layerRecord{DiffID: st.diffID, Bytes: usage.Bytes, Inodes: usage.Inodes, Implied: st.implied}
	ended := st.ended
	st.mu.Unlock()
	if ended {
		return fmt.Errorf("commit layer %s: stage has ended: %w", st.diffID, snapshot.ErrInvalid)
	}
	var err error
	if record.Opaque, err = treecopy.IsOpaque(st.Dir()); err != nil {
		return fmt.Errorf("commit layer %s: %w", st.diffID, err)
	}
	_, err = os.Lstat(st.Meta())
	record.Meta = err == nil
	if err := st.commit(ctx, record); err != nil {
		return fmt.Errorf("commit layer %s: %w", st.diffID, err)
	}
	return nil
}

// commit holds a claim on the layer's name throughout: who comes second finds the layer durable.
func (st *stage) commit(ctx context.Context, record layerRecord) error {
	s := st.s
	release, err := s.claims.Acquire(ctx, layersDir+"/"+layerName(st.diffID))
	if err != nil {
		return err
	}
	defer release()
	_, there := s.lookup(st.diffID)
	if there && !st.again {
		return st.Abort(ctx)
	}
	if err := s.syncer.Run(ctx); err != nil {
		return err
	}
	if there {
		err = st.replace(record)
	} else {
		err = st.publish(record)
	}
	if err != nil {
		return err
	}
	st.end()
	return nil
}

// addLayer takes in a committed layer. The caller holds s.mu.
func (s *Snapshotter) addLayer(record layerRecord) {
	s.layers[record.DiffID] = &layer{layerRecord: record}
	s.layerTotal = s.layerTotal.Add(record.usage())
}

// publish makes the synced layer appear, durably, or leaves the stage as it was.
func (st *stage) publish(record layerRecord) error {
	file, final := filepath.Join(st.path, layerFile), st.s.layerPath(st.diffID)
	err := writeRecord(file, record, true)
	if err == nil {
		err = unix.Rename(st.path, final)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("publish %s: %w", final, err), removeFile(file))
	}
	if err := syncfs.Names(filepath.Dir(final)); err != nil {
		return errors.Join(err, unix.Rename(final, st.path), removeFile(file))
	}
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.s.addLayer(record)
	return nil
}

// Layer implements snapshot.Layers.
func (s *Snapshotter) Layer(_ context.Context, chain []digest.Digest) (snapshot.Usage, error) {
	diffID, err := topOf(chain)
	if err != nil {
		return snapshot.Usage{}, fmt.Errorf("look up layer: %w", err)
	}
	record, ok := s.lookup(diffID)
	if !ok {
		return snapshot.Usage{}, fmt.Errorf("layer %s: %w", diffID, snapshot.ErrNotFound)
	}
	if err := s.present(diffID, layerTree, unix.S_IFDIR); err != nil {
		return snapshot.Usage{}, err
	}
	return record.usage(), nil
}

// present says ErrDamaged unless a part of a layer is there. Somebody may have deleted it, or a repair of the file system.
func (s *Snapshotter) present(diffID digest.Digest, part string, kind uint32) error {
	var st unix.Stat_t
	switch err := unix.Lstat(filepath.Join(s.layerPath(diffID), part), &st); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), err == nil && st.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("layer %s: %w: its %s is missing", diffID, snapshot.ErrDamaged, partNames[part])
	case err != nil:
		return fmt.Errorf("look at layer %s: %w", diffID, err)
	}
	return nil
}

// partNames are the parts of a layer as a person calls them.
var partNames = map[string]string{layerTree: "directory", layerFile: "record", layerMeta: "tar metadata"}

// RemoveLayer implements snapshot.Layers.
func (s *Snapshotter) RemoveLayer(ctx context.Context, diffID digest.Digest) error {
	if err := checkDiffID(diffID); err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	release, err := s.claims.Acquire(ctx, layersDir+"/"+layerName(diffID))
	if err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	defer release()
	l, err := s.withdraw(diffID)
	if err != nil || l == nil {
		return err
	}
	if err := s.discard(s.layerPath(diffID)); err != nil {
		s.mu.Lock()
		s.addLayer(l.layerRecord)
		s.mu.Unlock()
		return fmt.Errorf("remove layer %s: %w", diffID, err)
	}
	return nil
}

// withdraw takes an unused layer out of the map, so that no snapshot can be made of it. It returns nil if there is none.
func (s *Snapshotter) withdraw(diffID digest.Digest) (*layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[diffID]
	if l != nil && l.refs > 0 {
		return nil, fmt.Errorf("remove layer %s: part of %d snapshots: %w", diffID, l.refs, snapshot.ErrInUse)
	}
	if l != nil {
		delete(s.layers, diffID)
		u := l.usage()
		s.layerTotal = s.layerTotal.Add(snapshot.Usage{Bytes: -u.Bytes, Inodes: -u.Inodes})
	}
	return l, nil
}

// ListLayers implements snapshot.Layers.
func (s *Snapshotter) ListLayers(context.Context) ([]digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.layers)), nil
}
