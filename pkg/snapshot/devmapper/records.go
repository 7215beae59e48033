package devmapper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

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

// Steps in the life of a thin device. The last three are never on disk: that a device is of no use is found again after a restart, so that
// none is kept because there was no room to write that down.
const (
	stepMaking   = "making" // it may not be there yet, or not be whole
	stepMade     = "made"
	stepUnsure   = "unsure"   // it is to be removed if it has our file system: else there is none, or one that somebody else has made
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
	// Trees are what the layers of an image were on disk when it was copied, see treeOf.
	Trees []string `json:"trees,omitempty"`
	// FileSystem is the UUID that the file system of the device has, in hexadecimal: that of the empty one that it goes back to.
	FileSystem string `json:"fileSystem"`
	Size       int64  `json:"size"`           // of the device, in bytes
	From       uint32 `json:"from,omitempty"` // the image that a snapshot began as
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

// load reads the records.
func (s *Snapshotter) load() error {
	pools, err := os.ReadDir(filepath.Join(s.root, devicesDir))
	if err != nil {
		return fmt.Errorf("list records: %w", err)
	}
	for _, p := range pools {
		dir := filepath.Join(s.root, devicesDir, p.Name())
		if !p.IsDir() {
			logrus.WithField("file", dir).Warn("a file is ignored: it is not the directory of a thin pool")
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list records: %w", err)
		}
		for _, e := range entries {
			if err := s.loadRecord(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Snapshotter) loadRecord(path string) error {
	if strings.HasSuffix(path, wholefile.Suffix) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove record: %w", err)
		}
		return nil
	}
	r, err := readRecord(path)
	if errors.Is(err, errNoRecord) {
		logrus.WithField("file", path).Warn("a file is ignored: it is not the record of a thin device")
		return nil
	}
	if err != nil {
		return err
	}
	if other, taken := s.devices[r.ID]; taken {
		return fmt.Errorf("%s: the pool %q has a device of that ID as well: delete the record of the one that is lost", path, other.Pool)
	}
	s.devices[r.ID] = r
	s.index(r)
	return nil
}

var errNoRecord = errors.New("not a record")

// readRecord reads a record as it is after a start. One that cannot be read was being written when the power failed, for a snapshot that was
// made, whose container ended then: it is removed. errNoRecord, by the file's name.
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
	switch err := json.Unmarshal(data, &r); {
	case err != nil:
		logrus.WithError(err).WithField("file", path).Error("the record of a thin device cannot be read: the device is removed once nobody uses it")
		r = record{Step: stepRemoving}
	case r.Step == stepMaking:
		r.Step = stepUnsure
	case r.Kind == kindView:
		r.Step = stepRemoving
	}
	r.Pool, r.ID = filepath.Base(filepath.Dir(path)), uint32(id)
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
		s.mu.Unlock()
		err := s.write(r, true)
		if err == nil {
			err = r.pool().create(r.ID, origin)
		}
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			s.end(r, stepUnsure)
			return record{}, err
		}
		if err := s.disown(r); err != nil {
			return record{}, err
		}
	}
}

// disown ends the record of a device that somebody else has made, which is left alone.
func (s *Snapshotter) disown(r record) error {
	logrus.WithFields(logrus.Fields{"pool": r.Pool, "id": r.ID}).
		Warn("the thin pool has a device that criserver did not make; it is left alone")
	s.mu.Lock()
	s.foreign[r.ID] = struct{}{}
	s.mu.Unlock()
	err := s.forget(r)
	if err != nil {
		s.end(r, stepUnsure)
	}
	return err
}

// allocateFrom is allocate for a device that begins as another one, which origin makes anew if the pool has lost it. fill puts into the
// record what it takes from that.
func (s *Snapshotter) allocateFrom(origin func() (record, error), fill func(from record) record) (record, error) {
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
			s.retireIf(func(r record) bool { return r.ID == from.ID })
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
	if r.Kind == kindRoot { // nothing was written yet
		s.measured[r.ID] = snapshot.Measurement{Measured: time.Now()}
	}
	return nil
}

// abandon lets a device be removed in the background.
func (s *Snapshotter) abandon(r record) { s.end(r, stepRemoving) }

func (s *Snapshotter) end(r record, step string) {
	s.mu.Lock()
	r.Step = step
	s.devices[r.ID] = r
	s.unindex(r)
	s.settle(r.From)
	s.mu.Unlock()
	s.reaper.wake()
}

// retireIf retires images and empty file systems. Those that are being made are not used once they are made.
func (s *Snapshotter) retireIf(unwanted func(record) bool) {
	s.mu.Lock()
	for id, r := range s.devices {
		switch {
		case r.Kind != kindImage && r.Kind != kindBase || !unwanted(r):
		case r.Step == stepMaking:
			s.outdated[id] = struct{}{}
		case r.Step == stepMade:
			r.Step = stepRetired
			s.devices[id] = r
			s.unindex(r)
			s.settle(id)
		}
	}
	for _, r := range s.devices { // of two copies of an image one may have been in the other's place
		s.index(r)
	}
	s.mu.Unlock()
	s.reaper.wake()
}

// settle lets a device be removed that is retired, unless there are snapshots that began as it. The caller holds s.mu, and wakes the
// reaper.
func (s *Snapshotter) settle(id uint32) {
	r, ok := s.devices[id]
	if !ok || r.Step != stepRetired {
		return
	}
	for _, other := range s.devices {
		if other.From == id && other.Step != stepRemoving && other.Step != stepUnsure {
			return
		}
	}
	r.Step = stepRemoving
	s.devices[id] = r
}

// forget ends the record of a device that is gone, or foreign.
func (s *Snapshotter) forget(r record) error {
	path := s.recordPath(r)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	// Of another pool its ID is free for the next device of the configured one. Of a foreign device a record would be the end.
	if err == nil && (r.Pool != s.options.Pool || r.Step == stepMaking || r.Step == stepUnsure) {
		err = syncfs.Names(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("remove record: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, r.ID)
	s.settle(r.From)
	delete(s.mounted, r.ID)
	delete(s.measured, r.ID)
	delete(s.outdated, r.ID)
	return nil
}
