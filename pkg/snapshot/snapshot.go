// Package snapshot declares what a storage driver must do to give containers their root file systems.
//
// # Model
//
// A layer is the unpacked content of one image layer, named by its diffID (the digest of the uncompressed
// tar). It is unpacked once, by way of a Stage, and is read-only from its Commit on. An image is an ordered
// list of layers, lowest first. A snapshot is a view of such a list under a key of the caller's choice:
// writable (Prepare) for a container, read-only (View) for an image volume.
//
// A driver returns mounts and never mounts: the caller performs Mounts on a directory of its own, so a
// driver has no process-wide side effects and can be asked for the same mounts again after a restart.
//
// # Example
//
//	stage, err := s.Stage(ctx, []digest.Digest{base, diffID}) // the chain up to and with the layer
//	... unpack the layer's tar into stage.Dir() ...
//	if in, ok := stage.(snapshot.Inheritor); ok {
//		in.Inherit(implied)
//	}
//	err = stage.Commit(ctx, usage)
//	mounts, err := s.Prepare(ctx, containerID, image.DiffIDs)
//	err = snapshot.MountAll(mounts, rootfs)
//	... run the container, unmount rootfs ...
//	err = s.Remove(ctx, containerID)
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// Errors that every driver returns, wrapped; test with errors.Is.
var (
	// ErrNotFound: no layer or snapshot of that name.
	ErrNotFound = errors.New("not found")
	// ErrExists: a layer of that diffID is committed already, or a snapshot of that key exists.
	ErrExists = errors.New("already exists")
	// ErrInUse: the layer is part of a snapshot and cannot be removed.
	ErrInUse = errors.New("in use")
	// ErrDamaged: a layer is known, but what it is made of is not on the disk any more. It can be made anew, see Trees.
	ErrDamaged = errors.New("damaged")
	// ErrInvalid: a key, a diffID or a list of layers that no driver can use.
	ErrInvalid = errors.New("invalid")
)

// MaxKey is the longest key of a snapshot, in bytes.
const MaxKey = 128

// CheckKey says ErrInvalid unless key is made of 1 to MaxKey letters, digits, '-', '_' and '.', and starts with a letter
// or digit. Drivers use a key as a file name.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fmt.Errorf("snapshot key of %d bytes, want 1 to %d: %w", len(key), MaxKey, ErrInvalid)
	}
	for i := range len(key) {
		c := key[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return fmt.Errorf("snapshot key %q: character %q: %w", key, c, ErrInvalid)
		}
	}
	return nil
}

// Mount is one mount(2) call to be made by the caller.
type Mount struct {
	// Type is the file system type, such as "overlay" or "bind".
	Type string
	// Source is the device, directory or driver name to mount.
	Source string
	// Options are mount flags ("ro", "nosuid", …) and file system data, in mount(8) syntax.
	Options []string
	// Dir, if not empty, is the working directory that relative paths in Options start from: it keeps
	// the options of an image with many layers below the page that mount(2) accepts.
	Dir string
}

// Usage is the disk space that a layer's or a snapshot's own content takes.
type Usage struct {
	Bytes  int64 // allocated bytes, not apparent size
	Inodes int64
}

// Add returns the sum of both.
func (u Usage) Add(v Usage) Usage { return Usage{u.Bytes + v.Bytes, u.Inodes + v.Inodes} }

// Measurement is the usage of something that changes.
type Measurement struct {
	Usage
	// Measured is when the usage was so. Zero: it has not been measured yet, and the usage is zero too.
	Measured time.Time
}

// Add returns the sum of both, of the older one's time; what has never been measured is not in it.
func (m Measurement) Add(n Measurement) Measurement {
	sum := Measurement{Usage: m.Usage.Add(n.Usage), Measured: m.Measured}
	if m.Measured.IsZero() || !n.Measured.IsZero() && n.Measured.Before(m.Measured) {
		sum.Measured = n.Measured
	}
	return sum
}

// Totals are the disk space that all layers and all snapshots of a driver take. What has been removed but is not
// deleted yet is not in it: it is free as far as anybody but the disk is concerned.
type Totals struct {
	Layers Usage // of the committed layers, as told at their Commit
	// Writable is the sum of the snapshots' own content, as measured last; those that have never been are not in
	// it. Measured is the time of the oldest part, and zero if there are snapshots and none has been measured.
	Writable Measurement
	// Apart is what snapshots take, but not of the file system that the layers are on: of devices of their own. It is not in Writable.
	Apart Measurement
}

// Stage is a layer being unpacked. Exactly one of Commit and Abort ends it; Abort after Commit does nothing.
type Stage interface {
	// Dir is the directory to unpack into, empty at first. Whiteouts are written in overlayfs form: a
	// character device 0/0 for a removed name, the xattr trusted.overlay.opaque=y on an opaque directory.
	Dir() string
	// Meta is the path of a file that the caller may make: it is kept with the layer, see Trees, and goes with it.
	Meta() string
	// Commit syncs the content to disk, then makes the layer visible with the given usage. If the layer was
	// committed by somebody else in between, the stage is dropped and Commit succeeds.
	Commit(ctx context.Context, usage Usage) error
	// Abort deletes what was unpacked.
	Abort(ctx context.Context) error
}

// Inheritor is implemented by a Stage whose driver keeps layers independent of their position, so that unpacking
// cannot see the layers below. Directories that a layer's tar has names in but no entry of its own for ("implied")
// were then made with default attributes; they ought to look like the same directories of the lower layers, and which
// those are is known only when a snapshot is made.
type Inheritor interface {
	// Inherit names the implied directories, relative to Dir. It must be called before Commit.
	Inherit(implied []string)
}

// Trees is implemented by a driver that keeps each layer in a directory of its own, with whiteouts in overlayfs form. Nothing may be
// changed there.
type Trees interface {
	// Tree returns the directory of a committed layer, and the path of the file that was made as Stage.Meta, if it was. Both
	// are there as long as the layer is. ErrNotFound. ErrDamaged: one of them, or the driver's record, is missing.
	Tree(ctx context.Context, diffID digest.Digest) (dir, meta string, err error)
	// Restage is Stage for a layer that is there but damaged: Commit puts the new one in its place. What is mounted already
	// stays as it is until it is unmounted. ErrNotFound: there is no such layer.
	Restage(ctx context.Context, chain []digest.Digest) (Stage, error)
}

// Changer is implemented by a driver that can tell what was written to a snapshot.
type Changer interface {
	// Changes calls use with a directory that has what was written to a writable snapshot, in the form of Stage.Dir. It is there until
	// use returns, and nothing may be changed in it. Nobody writes to the snapshot meanwhile. ErrNotFound: there is no writable
	// snapshot of that key.
	Changes(ctx context.Context, key string, use func(dir string) error) error
}

// Filler is implemented by a driver whose writable layers can begin with content: with what a container had written that is made
// again elsewhere.
type Filler interface {
	// Fill calls unpack with the directory of a snapshot's writable layer, in the form of Stage.Dir, which is not mounted. Of the
	// directories that unpack names, relative to dir, the attributes are then made those of the layers below, see Inheritor.
	// ErrNotFound: there is no writable snapshot of that key.
	Fill(ctx context.Context, key string, unpack func(dir string) (implied []string, err error)) error
}

// Volumes is implemented by a driver that gives writable snapshots directories beside their layers: what is in one is no change of the
// layers, and is not seen through them.
type Volumes interface {
	// Volume makes an empty directory of a name (see CheckKey) that belongs to a writable snapshot, and returns its path. What is written
	// there counts as written to the snapshot, for Usage and for limits (which a process with CAP_SYS_RESOURCE may be above, see package
	// quota), and goes with it. Nothing needs to be mounted.
	// ErrNotFound: there is no writable snapshot of that key. ErrExists: it has a volume of that name.
	Volume(ctx context.Context, key, name string) (dir string, err error)
	// Volumes returns the directory that has the volumes of a snapshot by their names. ErrNotFound: there are none.
	Volumes(ctx context.Context, key string) (dir string, err error)
}

// Layers is the part of a driver that the image service uses.
type Layers interface {
	// Stage starts the layer chain[len(chain)-1], whose lower layers are chain[:len(chain)-1], lowest first.
	// A driver for which layers are independent of their position ignores the lower ones, and any number
	// of stages may be open at once. ErrExists: committed already.
	Stage(ctx context.Context, chain []digest.Digest) (Stage, error)
	// Layer tells the usage of a committed layer, after a look at whether it is still there, but not at what is in it.
	// ErrNotFound: there is none. ErrDamaged.
	Layer(ctx context.Context, chain []digest.Digest) (Usage, error)
	// RemoveLayer deletes a committed layer. ErrInUse: a snapshot is made of it. Unknown layers are no error.
	RemoveLayer(ctx context.Context, diffID digest.Digest) error
	// ListLayers returns the diffIDs of the committed layers, in no order.
	ListLayers(ctx context.Context) ([]digest.Digest, error)
}

// Accountant is the part of a driver that tells what is used on disk. Its methods are quick whatever the size and the
// number of snapshots: they read counters, of the file system or of an earlier measurement, and walk no tree.
type Accountant interface {
	// Usage tells what a snapshot's writable layer takes. Where the file system does not count, it is the result of
	// the last measurement, and the call asks for a new one in the background, as does Totals: who wants recent
	// numbers calls again, and looks at Measured. ErrNotFound: no such key.
	Usage(ctx context.Context, key string) (Measurement, error)
	// Totals adds up everything.
	Totals(ctx context.Context) (Totals, error)
}

// Snapshotter is a storage driver.
type Snapshotter interface {
	Layers
	Accountant
	// Prepare makes a writable snapshot of the layers (lowest first) and returns its mounts.
	// An image without layers is empty. The list may name a layer more than once.
	// ErrExists: the key is taken. ErrNotFound: a layer is missing. ErrInvalid: see CheckKey; too many layers.
	Prepare(ctx context.Context, key string, layers []digest.Digest) ([]Mount, error)
	// View makes a read-only snapshot; otherwise as Prepare.
	View(ctx context.Context, key string, layers []digest.Digest) ([]Mount, error)
	// Mounts returns the mounts of an existing snapshot again. ErrNotFound: no such key.
	Mounts(ctx context.Context, key string) ([]Mount, error)
	// Remove deletes a snapshot, which the caller has unmounted. An unknown key is no error.
	Remove(ctx context.Context, key string) error
	// Snapshots returns the keys of all snapshots, in no order.
	Snapshots(ctx context.Context) ([]string, error)
}
