// Package overlay keeps snapshots on overlayfs.
//
// On disk, below the root:
//
//	lock                   held by the process that uses the root
//	l/<name>/fs            content of the layer whose diffID starts with name
//	l/<name>/layer.json    its record
//	l/<name>/meta          what the image service keeps with it
//	l/<name>.<unique>      a layer that was replaced, while snapshots may have it mounted
//	s/<key>/u, s/<key>/w   upper and work directory of a snapshot
//	s/<key>/v/<name>       a volume of it
//	s/<key>/snapshot.json  its record
//	stage/                 what is being made; becomes visible by one rename, and is thrown away by New
//	trash/                 what was removed by one rename and is deleted in the background
//
// Where the file system has project quotas, u, w and v of a writable snapshot belong to a project of their own, which counts
// what the container writes and limits it. The directories say themselves which one it is: the record only repeats it.
//
// The directories are the records: whatever is below l and s is whole, whenever the process died.
//
// Layers do not depend on what lies below them. Their names are short and given relative to l, so that the options
// of an image with 128 layers fit into the page that mount(2) takes.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/claim"
	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/measure"
	"criserver/pkg/snapshot/rootlock"
	"criserver/pkg/snapshot/sweep"
	"criserver/pkg/snapshot/syncfs"
	"criserver/pkg/waiting"
)

const (
	layersDir    = "l"
	snapshotsDir = "s"
	stageDir     = "stage"
	trashDir     = "trash"

	layerTree   = "fs"
	layerFile   = "layer.json"
	layerMeta   = "meta"
	upperDir    = "u"
	workDir     = "w"
	volumesDir  = "v"
	snapshotRec = "snapshot.json"
)

// Snapshotter implements snapshot.Snapshotter.
type Snapshotter struct {
	root     string
	features features
	lock     *os.File
	claims   claim.Claims
	syncer   *syncfs.Syncer
	sweeper  *sweep.Sweeper
	projects *projects         // nil if the file system of root has no project quotas
	measurer *measure.Measurer // of the snapshots without a project
	run      string            // tells names made by this process from an earlier one's
	serial   atomic.Uint64     // numbers names in stage and trash

	mu         sync.Mutex // guards what follows and layer.refs; never held across a system call
	layers     map[digest.Digest]*layer
	layerTotal snapshot.Usage
	snapshots  map[string]snapshotRecord
}

var (
	_ snapshot.Snapshotter = (*Snapshotter)(nil)
	_ snapshot.Trees       = (*Snapshotter)(nil)
	_ snapshot.Changer     = (*Snapshotter)(nil)
	_ snapshot.Filler      = (*Snapshotter)(nil)
)

// Options change what a driver does. The zero value is the default.
type Options struct {
	// WritableBytes and WritableInodes limit what each writable snapshot made from now on may take; 0 is no limit. A
	// process that writes more gets EDQUOT or ENOSPC. It takes project quotas, without which New refuses.
	WritableBytes, WritableInodes int64
	// Projects are the project IDs that snapshots get. The zero value is DefaultProjects.
	Projects Projects
	// MeasureEvery is the least time between two measurements of a snapshot without a project; 0 is measure.Every.
	MeasureEvery time.Duration
}

// New opens the storage below root, which it creates if need be, and clears away what an earlier process left half
// made. It says why if overlayfs cannot work on the file system of root, if limits cannot be kept there, or if another
// process uses the root. The caller ends it with Close.
func New(root string, o Options) (*Snapshotter, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("resolve overlay root: %w", err)
	}
	if i := strings.IndexAny(root, `:,\"`); i >= 0 {
		return nil, fmt.Errorf("overlay root %q: overlayfs reads %q as a separator: %w", root, root[i], snapshot.ErrInvalid)
	}
	for _, dir := range []string{layersDir, snapshotsDir, stageDir, trashDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("make overlay root: %w", err)
		}
	}
	lock, err := rootlock.Take(root)
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{
		root:      root,
		lock:      lock,
		run:       strconv.FormatInt(time.Now().UnixNano(), 36),
		syncer:    syncfs.New(root),
		layers:    map[digest.Digest]*layer{},
		snapshots: map[string]snapshotRecord{},
	}
	s.measurer = measure.New(o.MeasureEvery, s.measure)
	s.sweeper = sweep.New(filepath.Join(root, trashDir), s.swept)
	if err := s.start(o); err != nil {
		return nil, errors.Join(err, s.projects.close(), lock.Close())
	}
	return s, nil
}

// start finds out what the file system can do and what is on it, and lets the background work begin.
func (s *Snapshotter) start(o Options) error {
	var err error
	s.features, err = probe(s.root, s.stagePath("probe"))
	if isFull(err) { // what is there must be served, and removed
		logrus.WithError(err).Warn("the disk is full: overlayfs could not be tried, and is taken to work as it did")
		s.features, err = kernelFeatures(), nil
	}
	if err != nil {
		return err
	}
	if s.projects, err = openProjects(s.root, s.stagePath("quota"), o); err != nil {
		return err
	}
	if err := s.recover(); err != nil {
		return err
	}
	s.sweeper.Start()
	s.measurer.Start()
	return nil
}

// Close waits for disk work in the background, but not beyond the context's end; what remains is done after the next
// New. No other method may run or be called any more.
func (s *Snapshotter) Close(ctx context.Context) error {
	err := errors.Join(waiting.On(ctx, s.syncer.Wait), s.sweeper.Stop(ctx), s.measurer.Stop(ctx), s.projects.wait(ctx))
	if err == nil { // else somebody may still use it
		err = s.projects.close()
	}
	return errors.Join(err, s.lock.Close())
}

// unique makes a name that nothing in stage or trash has.
func (s *Snapshotter) unique(hint string) string {
	return hint + "-" + s.run + "-" + strconv.FormatUint(s.serial.Add(1), 36)
}

func (s *Snapshotter) stagePath(hint string) string {
	return filepath.Join(s.root, stageDir, s.unique(hint))
}

// discard removes a directory from sight; the sweeper deletes it. A directory that does not exist is no error.
func (s *Snapshotter) discard(path string) error {
	name := s.unique(filepath.Base(path))
	undo := s.projects.discard(name, path)
	err := unix.Rename(path, filepath.Join(s.root, trashDir, name))
	if err != nil {
		undo()
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("move %s to trash: %w", path, err)
	}
	s.sweeper.Wake()
	return nil
}

// swept is called when a tree in trash has been deleted.
func (s *Snapshotter) swept(name string) { s.projects.swept(name) }

// mkdir makes a directory of exactly the mode, whatever the umask.
func mkdir(path string, mode uint32) error {
	if err := unix.Mkdir(path, mode); err != nil {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	if err := unix.Chmod(path, mode); err != nil {
		return fmt.Errorf("set mode of %s: %w", path, err)
	}
	return nil
}
