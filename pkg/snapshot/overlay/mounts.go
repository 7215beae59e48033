package overlay

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
)

// maxLayers is OVL_MAX_STACK of fs/overlayfs, less one for the upper directory of a View that inherits.
const maxLayers = 499

// distinct returns each layer once, in the order of their last place. Overlayfs refuses a directory that it is given
// twice, and images do repeat layers, empty ones above all. The lower of two equal layers is never seen: all
// that it has, the upper one has too.
func distinct(layers []digest.Digest) []digest.Digest {
	seen := make(map[digest.Digest]struct{}, len(layers))
	out := make([]digest.Digest, 0, len(layers))
	for _, diffID := range slices.Backward(layers) {
		if _, again := seen[diffID]; !again {
			seen[diffID] = struct{}{}
			out = append(out, diffID)
		}
	}
	slices.Reverse(out)
	return out
}

// visible returns the layers that can be seen through the stack, uppermost first. The caller holds s.mu.
func (s *Snapshotter) visible(layers []digest.Digest) ([]layerRecord, error) {
	layers = distinct(layers)
	out := make([]layerRecord, 0, len(layers))
	hidden := false
	for _, diffID := range slices.Backward(layers) {
		l := s.layers[diffID]
		if l == nil {
			return nil, fmt.Errorf("layer %q: %w", diffID, snapshot.ErrNotFound)
		}
		if !hidden {
			out = append(out, l.layerRecord)
		}
		hidden = hidden || l.Opaque
	}
	if len(out) > maxLayers {
		return nil, fmt.Errorf("%d layers, overlayfs stacks %d: %w", len(out), maxLayers, snapshot.ErrInvalid)
	}
	return out, nil
}

// mounts describes the snapshot of the visible layers, uppermost first.
func (s *Snapshotter) mounts(record snapshotRecord, layers []layerRecord) []snapshot.Mount {
	upper := filepath.Join(s.snapshotPath(record.Key), upperDir)
	switch {
	case len(layers) == 0 && record.ReadOnly:
		return bind(upper, "ro")
	case len(layers) == 0: // overlayfs wants a lower directory
		return bind(upper, "rw")
	case len(layers) == 1 && record.ReadOnly: // overlayfs without upper wants two
		return bind(filepath.Join(s.layerPath(layers[0].DiffID), layerTree), "ro")
	}
	lower := make([]string, 0, len(layers)+1)
	if record.Inherits {
		lower = append(lower, filepath.Join("..", snapshotsDir, record.Key, upperDir))
	}
	for _, l := range layers {
		lower = append(lower, layerName(l.DiffID)+"/"+layerTree)
	}
	options := []string{"lowerdir=" + strings.Join(lower, ":")}
	if s.features.indexOff == yes {
		options = append(options, "index=off")
	}
	if record.ReadOnly {
		options = append(options, "ro")
	} else {
		snap := filepath.Join("..", snapshotsDir, record.Key)
		options = append(options, "upperdir="+filepath.Join(snap, upperDir), "workdir="+filepath.Join(snap, workDir))
		if s.features.volatile == yes {
			options = append(options, "volatile")
		}
	}
	return []snapshot.Mount{{
		Type:    "overlay",
		Source:  "overlay",
		Options: options,
		Dir:     filepath.Join(s.root, layersDir),
	}}
}

func bind(source, mode string) []snapshot.Mount {
	return []snapshot.Mount{{Type: "bind", Source: source, Options: []string{"bind", mode}}}
}

// clearVolatile removes the mark by which the kernel refuses to mount an upper directory again that was used
// with "volatile" (Documentation/filesystems/overlayfs.rst, "Volatile mount"). It stays after a clean unmount, too.
func clearVolatile(snap string) error {
	mark := filepath.Join(snap, workDir, "work", "incompat", "volatile")
	err := unix.Unlink(filepath.Join(mark, "dirty"))
	if err == nil || errors.Is(err, unix.ENOENT) {
		err = unix.Rmdir(mark)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("clear volatile mark: %w", err)
	}
	return nil
}
