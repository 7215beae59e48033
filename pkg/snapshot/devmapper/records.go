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
	stepRemoving = "removing" // it may be gone
)

// record tells of a thin device. There is one from before it is made until after it is gone.
type record struct {
	ID   uint32 `json:"id"` // in the pool
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

func (s *Snapshotter) recordPath(id uint32) string {
	return filepath.Join(s.root, devicesDir, strconv.FormatUint(uint64(id), 10)+".json")
}

// write puts the record on disk, in the place of the one before. Durable: it is there after a power cut as well, as what the pool does is.
func (s *Snapshotter) write(r record, durable bool) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	path, write := s.recordPath(r.ID), wholefile.Write
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
	entries, err := os.ReadDir(filepath.Join(s.root, devicesDir))
	if err != nil {
		return fmt.Errorf("list records: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.root, devicesDir, e.Name())
		if strings.HasSuffix(e.Name(), wholefile.Suffix) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove record: %w", err)
			}
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read record: %w", err)
		}
		var r record
		if err := json.Unmarshal(data, &r); err != nil || s.recordPath(r.ID) != path {
			// Its thin device is lost; the pool has it until somebody deletes it there.
			logrus.WithError(err).WithField("file", path).Error("a record of a thin device cannot be read and is set aside")
			if err := os.Rename(path, filepath.Join(s.root, e.Name()+".broken")); err != nil {
				return fmt.Errorf("set record aside: %w", err)
			}
			continue
		}
		if r.Step == stepMaking || r.Kind == kindView {
			r.Step = stepRemoving
		}
		s.devices[r.ID] = r
		s.index(r)
	}
	return nil
}

// index makes a device known by what it is. The caller holds s.mu, or has the snapshotter to itself.
func (s *Snapshotter) index(r record) {
	if r.Step != stepMade {
		return
	}
	switch r.Kind {
	case kindBase:
		if r.Size == s.options.Size {
			s.base = r.ID
		}
	case kindImage:
		if r.Size == s.options.Size {
			s.images[r.Image] = r.ID
		}
	case kindRoot:
		s.roots[r.Key] = r.ID
	}
}

// allocate chooses a thin device's ID, makes the device, which begins as origin or, if that is 0, empty, and returns its record.
func (s *Snapshotter) allocate(r record, origin uint32) (record, error) {
	r.Step = stepMaking
	for {
		s.mu.Lock()
		r.ID = s.freeID()
		s.devices[r.ID] = r
		s.mu.Unlock()
		err := s.write(r, true)
		if err == nil {
			if origin == 0 {
				err = s.pool.createThin(r.ID)
			} else {
				err = s.pool.createSnap(r.ID, origin)
			}
		}
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return record{}, errors.Join(err, s.abandon(r))
		}
		// It is not ours: neither is it removed.
		logrus.WithFields(logrus.Fields{"pool": s.pool.name, "id": r.ID}).Warn("the thin pool has a device that criserver did not make; it is left alone")
		if err := s.forget(r.ID, true); err != nil {
			return record{}, err
		}
	}
}

// allocateFrom is allocate for a device that begins as another one, which origin makes anew if the pool has lost it. fill puts into the
// record what it takes from that.
func (s *Snapshotter) allocateFrom(origin func() (record, error), fill func(from record) record) (record, error) {
	for again := false; ; again = true {
		from, err := origin()
		if err != nil {
			return record{}, err
		}
		made, err := s.allocate(fill(from), from.ID)
		if !errors.Is(err, unix.ENODATA) || again {
			return made, err
		}
		if err := s.abandon(from); err != nil {
			return record{}, err
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

// made says that the device is whole, and makes it known.
func (s *Snapshotter) made(r record) error {
	r.Step = stepMade
	if err := s.write(r, r.Kind != kindRoot); err != nil { // a container does not outlive a power cut
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devices[r.ID] = r
	s.index(r)
	return nil
}

// abandon lets a device be removed in the background.
func (s *Snapshotter) abandon(r record) error {
	s.mu.Lock()
	r.Step = stepRemoving
	s.devices[r.ID] = r
	if s.roots[r.Key] == r.ID {
		delete(s.roots, r.Key)
	}
	if s.images[r.Image] == r.ID {
		delete(s.images, r.Image)
	}
	if s.base == r.ID {
		s.base = 0
	}
	s.mu.Unlock()
	err := s.write(r, r.Kind != kindRoot) // should that be lost, its snapshot is found to be nobody's
	s.reaper.wake()
	return err
}

// forget ends the record of a device that is gone, or foreign.
func (s *Snapshotter) forget(id uint32, foreign bool) error {
	if err := os.Remove(s.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, id)
	delete(s.mounted, id)
	delete(s.measured, id)
	if foreign {
		s.foreign[id] = struct{}{}
	}
	return nil
}
