package devmapper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/syncfs"
	"criserver/pkg/wholefile"
)

// A thin device is for one of these.
const (
	kindBase  = "base"     // an empty file system, which images begin as
	kindImage = "image"    // what containers of an image begin as
	kindRoot  = "snapshot" // the root file system of a container
	kindView  = "view"     // what one began as, for a comparison
)

// Steps in the life of a thin device.
const (
	stepMaking   = "making" // it may not be there yet, or not be whole
	stepMade     = "made"
	stepRetired  = "retired"  // nothing more begins as it, but there are snapshots that did, and are compared with it
	stepRemoving = "removing" // it may be gone
)

// record tells of a thin device. There is one from before it is made until after it is gone.
type record struct {
	Pool string `json:"-"`
	ID   uint32 `json:"-"` // in the pool
	Kind string `json:"kind"`
	Step string `json:"step"`
	// Key is that of the snapshot.
	Key string `json:"key,omitempty"`
	// Image is what the image or the snapshot shows: a digest of the list of its layers, which are listed lowest first.
	Image  digest.Digest   `json:"image,omitempty"`
	Layers []digest.Digest `json:"layers,omitempty"`
	Size   int64           `json:"size"`           // of the device, in bytes
	From   uint32          `json:"from,omitempty"` // the image that a snapshot began as
	// Used is what a device had in its file system when it was made.
	Used snapshot.Usage `json:"used"`
}

func (r record) pool() pool { return pool{r.Pool} }

func (s *Snapshotter) recordPath(r record) string {
	return filepath.Join(s.root, devicesDir, r.Pool, strconv.FormatUint(uint64(r.ID), 10)+recordSuffix)
}

const recordSuffix = ".json"

// write puts the record on disk, in the place of the one before. Durable: it is there after a power cut as well, as what the pool does is.
func (s *Snapshotter) write(r record, durable bool) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	path, write := s.recordPath(r), wholefile.Write
	if durable {
		write = wholefile.WriteSynced
	}
	if err = write(path, data); err == nil && durable {
		err = syncfs.Names(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write record of thin device %d: %w", r.ID, err)
	}
	return nil
}

// load reads the records. What was being made is removed.
func (s *Snapshotter) load() error {
	paths, err := filepath.Glob(filepath.Join(s.root, devicesDir, "*", "*"))
	if err != nil {
		return fmt.Errorf("list records: %w", err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, wholefile.Suffix) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove record: %w", err)
			}
			continue
		}
		r, err := readRecord(path)
		if errors.Is(err, errNoRecord) {
			logrus.WithField("file", path).Warn("a file is ignored: it is not the record of a thin device")
			continue
		}
		if err != nil {
			return err
		}
		if other, taken := s.devices[r.ID]; taken {
			return fmt.Errorf("%s: the pool %q has a device of that ID as well: delete the record of the one that is lost", path, other.Pool)
		}
		s.devices[r.ID] = r
		s.index(r)
	}
	return nil
}

var errNoRecord = errors.New("not a record")

// readRecord reads a record as it is after a start. One that cannot be read was being written when the power failed: it is that of a
// snapshot, whose container ended then, or of a device that was only being made. Both are removed. errNoRecord, by the file's name.
func readRecord(path string) (record, error) {
	name, ok := strings.CutSuffix(filepath.Base(path), recordSuffix)
	id, err := strconv.ParseUint(name, 10, 32)
	if !ok || err != nil || id == 0 || id > maxID {
		return record{}, errNoRecord
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return record{}, fmt.Errorf("read record: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		logrus.WithError(err).WithField("file", path).Error("the record of a thin device cannot be read: the device is removed once nobody uses it")
		r = record{Step: stepMaking}
	}
	r.Pool, r.ID = filepath.Base(filepath.Dir(path)), uint32(id)
	if r.Step == stepMaking || r.Kind == kindView {
		r.Step = stepRemoving
	}
	return r, nil
}

// index makes a device known by what it is. The caller holds s.mu, or has the snapshotter to itself.
func (s *Snapshotter) index(r record) {
	switch current := r.Pool == s.options.Pool && r.Size == s.options.Size; {
	case r.Step != stepMade:
	case r.Kind == kindRoot:
		s.roots[r.Key] = r.ID
	case r.Kind == kindImage && current:
		s.images[r.Image] = r.ID
	case r.Kind == kindBase && current:
		s.base = r.ID
	}
}

// unindex takes that back. The caller holds s.mu.
func (s *Snapshotter) unindex(r record) {
	if s.roots[r.Key] == r.ID {
		delete(s.roots, r.Key)
	}
	if s.images[r.Image] == r.ID {
		delete(s.images, r.Image)
	}
	if s.base == r.ID {
		s.base = 0
	}
}

// errRetired: a device was retired before another one could begin as it.
var errRetired = errors.New("it is of an image that has been made anew")

// allocate chooses a thin device's ID in r.Pool, makes the device, which begins as origin or, if that is 0, empty, and returns its record.
// errRetired; unix.ENODATA: the pool has no such origin.
func (s *Snapshotter) allocate(r record, origin uint32) (record, error) {
	r.Step = stepMaking
	for {
		s.mu.Lock()
		if r.Kind == kindRoot && s.devices[origin].Step != stepMade {
			s.mu.Unlock()
			return record{}, errRetired
		}
		r.ID = s.freeID()
		s.devices[r.ID] = r
		probe := s.probe
		s.mu.Unlock()
		if probe {
			foreign, err := r.pool().has(r.ID)
			s.mu.Lock()
			s.probe = foreign || err != nil
			s.mu.Unlock()
			if foreign || err != nil {
				s.disown(r, foreign)
			}
			if err != nil {
				return record{}, err
			}
			if foreign {
				continue
			}
		}
		err := s.write(r, true)
		if err == nil {
			err = r.pool().create(r.ID, origin)
		}
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return record{}, errors.Join(err, s.abandon(r))
		}
		// Somebody has made a device since the probe. Should this process be killed before the record is gone, the next one takes the device
		// for its own.
		err = os.Remove(s.recordPath(r))
		if err == nil {
			err = syncfs.Names(filepath.Dir(s.recordPath(r)))
		}
		s.disown(r, true)
		if err != nil {
			return record{}, fmt.Errorf("remove record: %w", err)
		}
	}
}

// disown ends what allocate began, without a record on disk. A foreign device is left alone.
func (s *Snapshotter) disown(r record, foreign bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, r.ID)
	if foreign {
		s.foreign[r.ID], s.probe = struct{}{}, true
		logrus.WithFields(logrus.Fields{"pool": r.Pool, "id": r.ID}).
			Warn("the thin pool has a device that criserver did not make; it is left alone")
	}
}

// allocateFrom is allocate for a device that begins as another one, which origin makes anew if the pool has lost it. fill puts into the
// record what it takes from that.
func (s *Snapshotter) allocateFrom(ctx context.Context, origin func() (record, error), fill func(from record) record) (record, error) {
	for again := false; ; {
		from, err := origin()
		if err != nil {
			return record{}, err
		}
		made, err := s.allocate(fill(from), from.ID)
		switch {
		case errors.Is(err, errRetired):
		case errors.Is(err, unix.ENODATA) && !again:
			again = true
			if err := s.retireIf(ctx, func(r record) bool { return r.ID == from.ID }); err != nil {
				return record{}, err
			}
		default:
			return made, err
		}
	}
}

// maxID is the last ID of a thin device (dm-thin.c, MAX_DEV_ID).
const maxID = 1<<24 - 1

// freeID is an ID that no record has, and that no foreign device has as far as is known. The caller holds s.mu.
func (s *Snapshotter) freeID() uint32 {
	for {
		s.last = s.last%maxID + 1
		_, taken := s.devices[s.last]
		_, foreign := s.foreign[s.last]
		if !taken && !foreign {
			return s.last
		}
	}
}

// made says that the device is whole, and makes it known. errRetired: it is of no use any more.
func (s *Snapshotter) made(r record) error {
	r.Step = stepMade
	if err := s.write(r, r.Kind != kindRoot); err != nil { // a container does not outlive a power cut
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.outdated[r.ID]; ok {
		return errRetired
	}
	s.devices[r.ID] = r
	s.index(r)
	return nil
}

// abandon lets a device be removed in the background. It is called for the same device by one at a time.
func (s *Snapshotter) abandon(r record) error {
	r.Step = stepRemoving
	err := s.write(r, r.Kind != kindRoot) // should that be lost, its snapshot is found to be nobody's
	s.mu.Lock()
	s.devices[r.ID] = r
	s.unindex(r)
	s.mu.Unlock()
	s.reaper.wake()
	return err
}

// retireIf retires images and empty file systems. Those that are being made are not used once they are made.
func (s *Snapshotter) retireIf(ctx context.Context, unwanted func(record) bool) error {
	s.mu.Lock()
	var out []uint32
	for id, r := range s.devices {
		switch {
		case r.Kind != kindImage && r.Kind != kindBase || !unwanted(r):
		case r.Step == stepMaking:
			s.outdated[id] = struct{}{}
		case r.Step == stepMade:
			r.Step = stepRetired
			s.devices[id] = r
			s.unindex(r)
			out = append(out, id)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, id := range out {
		errs = append(errs, s.settle(ctx, id))
	}
	return errors.Join(errs...)
}

// settle sees to a device that may be retired: it is kept while there are snapshots that began as it, and then removed.
func (s *Snapshotter) settle(ctx context.Context, id uint32) error {
	s.mu.Lock()
	step := s.devices[id].Step
	s.mu.Unlock()
	if step != stepRetired {
		return nil
	}
	release, err := s.claims.Acquire(ctx, "retired/"+strconv.FormatUint(uint64(id), 10))
	if err != nil {
		return err
	}
	defer release()
	s.mu.Lock()
	r, used := s.devices[id], false
	for _, other := range s.devices {
		used = used || other.From == id && other.Step != stepRemoving
	}
	s.mu.Unlock()
	switch {
	case r.Step != stepRetired:
		return nil
	case used:
		return s.write(r, true)
	}
	return s.abandon(r)
}

// forget ends the record of a device that is gone.
func (s *Snapshotter) forget(r record) error {
	if err := os.Remove(s.recordPath(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, r.ID)
	delete(s.mounted, r.ID)
	delete(s.measured, r.ID)
	delete(s.outdated, r.ID)
	return nil
}
