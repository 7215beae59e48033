package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
)

// layerRecord is layer.json.
type layerRecord struct {
	DiffID digest.Digest `json:"diffID"`
	Bytes  int64         `json:"bytes"`
	Inodes int64         `json:"inodes"`
	// Opaque: the layer hides all below it. Overlayfs ignores the mark on the root of a lower directory.
	Opaque  bool     `json:"opaque,omitempty"`
	Implied []string `json:"implied,omitempty"` // see snapshot.Inheritor
	// Meta: a file was made as Stage.Meta.
	Meta bool `json:"meta,omitempty"`
}

// snapshotRecord is snapshot.json.
type snapshotRecord struct {
	Key      string          `json:"key"`
	Layers   []digest.Digest `json:"layers"` // lowest first, as given
	ReadOnly bool            `json:"readOnly,omitempty"`
	// Inherits: a read-only snapshot whose upper directory lies over the layers, see inherit.
	Inherits bool `json:"inherits,omitempty"`
	// Project counts what is written, see projects; 0 is none. That of the directories is what holds.
	Project uint32 `json:"project,omitempty"`
}

// errBroken marks a record that cannot be read because its content is wrong or missing, not because the disk fails.
var errBroken = errors.New("broken record")

func readRecord(path string, record any) error {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: %w", errBroken, err)
	case err != nil:
		return fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(data, record); err != nil {
		return fmt.Errorf("decode %s: %w: %w", path, errBroken, err)
	}
	return nil
}

// writeRecord creates the file, and syncs it if asked.
func writeRecord(path string, record any, durable bool) error {
	data, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create record: %w", err)
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}

// recover throws away what is half made and reads the records of what is whole.
func (s *Snapshotter) recover() error {
	err := s.eachEntry(trashDir, func(name, path string) error {
		s.projects.discard(name, path)
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.eachEntry(stageDir, func(_, path string) error { return s.discard(path) }); err != nil {
		return err
	}
	if err := s.eachEntry(layersDir, s.recoverLayer); err != nil {
		return err
	}
	if err := s.eachEntry(snapshotsDir, s.recoverSnapshot); err != nil {
		return err
	}
	return s.recoverOld()
}

func (s *Snapshotter) eachEntry(dir string, do func(name, path string) error) error {
	dir = filepath.Join(s.root, dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	for _, entry := range entries {
		if err := do(entry.Name(), filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *Snapshotter) recoverLayer(name, path string) error {
	if strings.Contains(name, ".") { // replaced, see recoverOld
		return nil
	}
	var record layerRecord
	err := readRecord(filepath.Join(path, layerFile), &record)
	if err == nil && (record.DiffID.Validate() != nil || layerName(record.DiffID) != name) {
		err = errBroken
	}
	if errors.Is(err, errBroken) {
		return s.discard(path) // its images are pulled again
	}
	if err != nil {
		return fmt.Errorf("recover layer %s: %w", name, err)
	}
	s.addLayer(record)
	return nil
}

// recoverSnapshot drops a snapshot without a record: records are not synced, so a power cut may lose one that was
// just written, and with the power went the container.
func (s *Snapshotter) recoverSnapshot(name, path string) error {
	var record snapshotRecord
	err := readRecord(filepath.Join(path, snapshotRec), &record)
	if err == nil && (record.Key != name || snapshot.CheckKey(name) != nil) {
		err = errBroken
	}
	if errors.Is(err, errBroken) {
		return s.discard(path)
	}
	if err != nil {
		return fmt.Errorf("recover snapshot %s: %w", name, err)
	}
	for _, diffID := range distinct(record.Layers) {
		if l := s.layers[diffID]; l != nil {
			l.refs++
		}
	}
	record.Project = s.projects.recover(path)
	s.snapshots[name] = record
	if record.Project == 0 {
		s.measurer.Add(name, true)
	}
	return nil
}
