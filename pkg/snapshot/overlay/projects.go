package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/quota"
)

// Projects is a range of project IDs, ends included.
type Projects struct{ First, Last uint32 }

// DefaultProjects lies above the IDs that the kubelet counts up from, 1048577, for the volumes of pods (its package
// volume/util/fsquota), on what may be the same file system. The IDs that other programs do use are left out anyway.
var DefaultProjects = Projects{2_000_000, 2_999_999}

const (
	// maxForeign is how many IDs in a row may be in use by others before a snapshot is refused.
	maxForeign = 4096
	// totalEvery is the least time between two rounds that read all projects.
	totalEvery = 5 * time.Second
	// totalWait is how long a call waits for a round: one of 1,000 projects takes a few milliseconds.
	totalWait = 50 * time.Millisecond
)

// projects gives each writable snapshot a project of the file system (see package quota), with the upper and the work
// directory in it: what is written by way of the work directory counts too. A project is in use until the
// snapshot's tree is gone from trash. The directories say whose it is, and the file system's count whether it is free,
// so nothing is lost with a record. The methods of a nil *projects, where there are no quotas, do nothing.
type projects struct {
	fs     *quota.FS
	limits quota.Limits
	ids    Projects
	base   uint32 // of the root: what was put in a project from outside is not ours

	mu      sync.Mutex
	next    uint32
	taken   map[uint32]bool   // whether it is a snapshot's; else its tree waits in trash
	trashed map[string]uint32 // by name in trash
	sum     snapshot.Measurement
	round   chan struct{} // closed when the round that runs has ended; nil if none runs
	rounds  sync.WaitGroup
}

// check refuses what makes no sense on any file system.
func (o Options) check() error {
	if o.WritableBytes < 0 || o.WritableInodes < 0 || o.MeasureEvery < 0 {
		return fmt.Errorf("overlay options %+v: negative: %w", o, snapshot.ErrInvalid)
	}
	if p := o.Projects; p != (Projects{}) && (p.First == 0 || p.First > p.Last) {
		return fmt.Errorf("projects %d to %d of overlay root: no range of positive IDs: %w", p.First, p.Last, snapshot.ErrInvalid)
	}
	return nil
}

// openProjects returns nil if the file system of root has no project quotas, which is an error only if limits are
// to be kept. It tries them on the directory scratch, of which it leaves nothing.
func openProjects(root, scratch string, o Options) (*projects, error) {
	p := &projects{
		limits: quota.Limits{Bytes: o.WritableBytes, Inodes: o.WritableInodes}, ids: o.Projects,
		taken: map[uint32]bool{}, trashed: map[string]uint32{},
	}
	if p.ids == (Projects{}) {
		p.ids = DefaultProjects
	}
	p.next = p.ids.First
	var err error
	if p.fs, err = quota.Open(root); err != nil {
		return nil, p.refuse(root, err)
	}
	state := p.fs.State()
	wanted := state.Counts == quota.Yes && (p.limits == quota.Limits{} || state.Limits == quota.Yes)
	if err = state.Reason; wanted {
		p.base, _ = quota.Project(root) // if it cannot be read, the trial fails
		if err = p.try(scratch); isFull(err) {
			logrus.WithError(err).Warn("the disk is full: project quotas could not be tried, and are taken to work as they did")
			err = nil
		}
	}
	if err != nil {
		return nil, errors.Join(p.refuse(root, err), p.fs.Close())
	}
	return p, nil
}

// refuse makes an error of the reason why there are no quotas, if they are needed.
func (p *projects) refuse(root string, reason error) error {
	if p.limits == (quota.Limits{}) {
		return nil
	}
	return fmt.Errorf("writable layers below %s cannot be limited: %w: mount its file system with project quotas, or set no limit"+
		" (ext4: \"tune2fs -O project,quota -Q prjquota DEVICE\" while it is not mounted, then mount with prjquota;"+
		" xfs: mount with pquota)", root, reason)
}

// try puts a directory in a project and looks whether it counts.
func (p *projects) try(scratch string) error {
	for _, dir := range []string{upperDir, workDir} {
		if err := os.MkdirAll(filepath.Join(scratch, dir), 0o700); err != nil {
			return fmt.Errorf("make directory to try quotas: %w", err)
		}
	}
	id, err := p.give(context.Background(), scratch)
	if err == nil {
		var usage quota.Usage
		usage, _, err = p.fs.Get(id)
		if err == nil && usage.Inodes != 2 {
			err = fmt.Errorf("two directories of project %d count as %d", id, usage.Inodes)
		}
	}
	err = errors.Join(err, os.RemoveAll(scratch))
	if id != 0 {
		p.free(id)
	}
	return err
}

// assign gives a snapshot's two empty directories a project and limits it. If there are no limits to keep, a snapshot
// may have to go without a project, 0.
func (p *projects) assign(ctx context.Context, snap string) (uint32, error) {
	if p == nil {
		return 0, nil
	}
	id, err := p.give(ctx, snap)
	if err != nil && p.limits == (quota.Limits{}) && ctx.Err() == nil {
		return 0, nil
	}
	return id, err
}

// give does it, or tells why it cannot be done.
func (p *projects) give(ctx context.Context, snap string) (uint32, error) {
	id, err := p.acquire(ctx)
	if err != nil {
		return 0, err
	}
	// Each by itself, not the directory around them: whoever put the root into a project that directories hand on
	// could else not have it moved into its place, see quota.Assign.
	for _, dir := range []string{upperDir, workDir} {
		if err := quota.Assign(filepath.Join(snap, dir), id); err != nil {
			p.free(id) // if a directory has it, the file system knows that it is in use
			return 0, err
		}
	}
	return id, nil
}

// acquire takes the next free ID. An ID that counts something is another program's, or what was in it is still being
// deleted, or it is of a snapshot whose record was lost.
func (p *projects) acquire(ctx context.Context) (uint32, error) {
	for range maxForeign {
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("take project: %w", err)
		}
		id := p.claim()
		if id == 0 {
			break
		}
		usage, limits, err := p.fs.Get(id)
		if err == nil && usage.Inodes == 0 {
			if limits != p.limits {
				err = p.fs.Limit(id, p.limits)
			}
			if err == nil {
				return id, nil
			}
		}
		p.unclaim(id)
		if err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("take project: none is free from %d on, of %d to %d: %w", p.next, p.ids.First, p.ids.Last, unix.ENOSPC)
}

// claim returns the next ID that is not taken, 0 if all are. IDs are used in turn: one that has just become free is the
// last to be used again.
func (p *projects) claim() uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range uint64(p.ids.Last-p.ids.First) + 1 {
		id := p.next
		if p.next++; p.next > p.ids.Last || p.next == 0 {
			p.next = p.ids.First
		}
		if _, taken := p.taken[id]; !taken {
			p.taken[id] = true
			return id
		}
	}
	return 0
}

func (p *projects) unclaim(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, id)
}

// free takes the limits away from a project and then lets others have it. If the limits cannot be removed they stay until
// the next use, which sets its own.
func (p *projects) free(id uint32) {
	_ = p.fs.Limit(id, quota.Limits{})
	p.unclaim(id)
}

// owner tells the project of a snapshot's directory, wherever it is; 0 is none of ours.
func (p *projects) owner(snap string) uint32 {
	if p == nil {
		return 0
	}
	id, err := quota.Project(filepath.Join(snap, upperDir))
	if err != nil || id == p.base {
		return 0
	}
	return id
}

// recover takes in a snapshot that an earlier process made and tells its project.
func (p *projects) recover(snap string) uint32 {
	id := p.owner(snap)
	if id != 0 {
		p.mu.Lock()
		p.taken[id] = true
		p.mu.Unlock()
	}
	return id
}

// discard notes that a tree is about to be moved to trash, or is in it, by that name. undo says that it was not moved.
func (p *projects) discard(name, path string) (undo func()) {
	id := p.owner(path)
	if id == 0 {
		return func() {}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trashed[name] = id
	p.taken[id] = false
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.trashed, name)
		p.taken[id] = true
	}
}

// swept says that a tree is gone from trash.
func (p *projects) swept(name string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	id, ok := p.trashed[name]
	delete(p.trashed, name)
	p.mu.Unlock()
	if ok {
		p.free(id)
	}
}

func (p *projects) close() error {
	if p == nil {
		return nil
	}
	return p.fs.Close()
}
