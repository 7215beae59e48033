// Package imagesvc holds the images of a node: it pulls them from registries into snapshot layers, keeps their records, and
// removes them with what only they use.
//
// # Model
//
// An image is its configuration, whose digest is its ID, and an ordered list of layers. Names (tags and digests of
// repositories) point to it. A layer is fetched and unpacked once, whatever image it is part of. An image is visible once
// its record is written, and that is the last thing a pull does; a pull that fails leaves at most whole layers, which
// Collect removes.
package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/catalog"
	"criserver/pkg/imagesvc/cleaner"
	"criserver/pkg/imagesvc/content"
	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/lease"
	"criserver/pkg/imagesvc/progress"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/names"
	"criserver/pkg/imagesvc/restore"
	"criserver/pkg/imagesvc/shared"
	"criserver/pkg/imagesvc/sources"
	"criserver/pkg/imagesvc/trust"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/record"
	"criserver/pkg/snapshot"
)

// Errors that the service returns, wrapped; test with errors.Is.
var (
	// ErrNotFound: no image of that name or ID.
	ErrNotFound = catalog.ErrNotFound
	// ErrInvalid: the image, or its name, is not one that can be used.
	ErrInvalid = document.ErrInvalid
	// ErrUntrusted: the policy asks for signatures that the image does not have.
	ErrUntrusted = trust.ErrRejected
	// ErrNoSpace: the disk is full, or a quota of it.
	ErrNoSpace = errors.New("no space left on the image file system")
)

// Image is an image of the node, see package catalog.
type Image = catalog.Image

// FsInfo is the file system that images and the root file systems of containers are on, and what they take of it.
type FsInfo struct {
	Path       string
	Images     snapshot.Usage
	Containers snapshot.Measurement
}

// Layers is what the service needs of a storage driver.
type Layers interface {
	snapshot.Layers
	Totals(ctx context.Context) (snapshot.Totals, error)
}

// Config is what the service needs to know.
type Config struct {
	// Root is the directory of its own files, LayerRoot that of the snapshotter's, for FsInfo.
	Root, LayerRoot string
	// ParallelLayers of one image are fetched at once, and one large layer by so many Connections; 0 is 1.
	ParallelLayers, Connections int
	// Patience is how long a slow registry is waited for while another pull could fetch the layer from its own; 0 is 10 seconds.
	Patience time.Duration
	// KeepBlobs keeps the compressed layers too, so that images can be given on exactly as they came.
	KeepBlobs bool
	// KeepDownloads is how long what is there of an aborted download waits for the next try.
	KeepDownloads time.Duration
	// KeepLost is how long after the start layers stay of which no record tells any more whether an image needs them.
	KeepLost time.Duration
	// Limits are what one layer may take when it is unpacked.
	Limits unpack.Limits
}

// Settings are what may change while the service runs.
type Settings struct {
	Registry *registry.Client
	// Policy says which images may be used; nil is all.
	Policy Policy
	// Pinned are patterns of names (names.Match) of images that must not be removed to free space.
	Pinned []string
}

func (s Settings) check() error {
	for _, p := range s.Pinned {
		if err := names.CheckPattern(p); err != nil {
			return fmt.Errorf("pinned image pattern %q: %w", p, err)
		}
	}
	return nil
}

// Change makes other settings those of all that begins from now on.
func (s *Service) Change(to Settings) error {
	if err := to.check(); err != nil {
		return err
	}
	s.settings.Store(&to)
	return nil
}

// Service holds the images. Its methods may be called at the same time.
type Service struct {
	config    Config
	settings  atomic.Pointer[Settings]
	layers    Layers
	content   *content.Store
	downloads *download.Store

	pulls    shared.Calls[pullKey, digest.Digest]
	fetches  shared.Calls[fetchKey, struct{}]
	sources  sources.Table
	progress progress.Tracker
	cleaner  cleaner.Cleaner
	mender   cleaner.Cleaner

	catalog  *catalog.Catalog
	restorer *restore.Restorer
	full     atomic.Int64 // when the disk was last met full, in nanoseconds since 1970
	leases   lease.Leases // of what pulls under way count on
	// collecting is held, by a value in it, by the one Collect at work.
	collecting chan struct{}
	// lost tells that records were lost, or what belongs to them, and opened when that was found.
	lost   bool
	opened time.Time
}

// smallBlob is the size in bytes up to which a half fetched layer is not kept: it is fetched again in little time.
const smallBlob = 8 << 20

// New opens the image records in the database, which must be synced (record.Options). Images whose layers or
// configuration are not there whole are out of sight until they are pulled again; what is left of them is used then. So are
// those whose records are not as they were written.
// The database and the layers stay the caller's, who ends the use of both with Close.
func New(ctx context.Context, c Config, db *record.DB, now Settings, layers Layers) (*Service, error) {
	if err := now.check(); err != nil {
		return nil, err
	}
	blobs, err := content.New(filepath.Join(c.Root, "content"))
	if err != nil {
		return nil, err
	}
	small := int64(smallBlob)
	if c.KeepBlobs { // they are needed once more
		small = 0
	}
	downloads, err := download.New(download.Config{Dir: filepath.Join(c.Root, "downloads"), Connections: c.Connections, Small: small})
	if err != nil {
		return nil, err
	}
	images, err := catalog.Open(ctx, db)
	if err != nil {
		return nil, err
	}
	s := &Service{
		config: c, layers: layers, content: blobs, downloads: downloads, catalog: images, collecting: make(chan struct{}, 1),
		lost: db.Salvaged() != "", opened: time.Now(),
	}
	s.restorer = &restore.Restorer{
		Catalog: images, Content: blobs, Leases: &s.leases, Downloads: downloads, Registry: func() *registry.Client { return s.settings.Load().Registry },
	}
	s.sources.Patience = c.Patience
	s.settings.Store(&now)
	s.progress.Exists = func(chain []digest.Digest) bool {
		_, err := layers.Layer(context.Background(), chain) // it does not wait for a disk that works
		return err == nil
	}
	if err := s.clearImports(); err != nil {
		return nil, fmt.Errorf("clear imports: %w", err)
	}
	for _, img := range images.All() {
		_ = s.look(ctx, img) // which logs it
	}
	s.restorer.Spare(ctx)
	return s, nil
}

// clearImports removes what an import left that was cut off. The directory stays: on a full disk it could not be made again.
func (s *Service) clearImports() error {
	if err := os.MkdirAll(s.imports(), 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.imports())
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.imports(), entry.Name())))
	}
	return err
}

// Close cancels the pulls under way and waits until nothing touches the layers any more.
func (s *Service) Close() {
	s.cleaner.Stop()
	s.mender.Stop()
	s.pulls.Close()
	s.fetches.Close()
}

// look hides an image that is not whole, shows one that is, and tells what is missing.
func (s *Service) look(ctx context.Context, img Image) error {
	err := s.check(ctx, img)
	if s.catalog.Hide(img.ID, err != nil) && err != nil {
		logrus.WithError(err).WithFields(logrus.Fields{"image": img.ID, "tags": img.Tags}).
			Error("an image is not whole and must be pulled again")
	}
	return err
}

// check tells what is missing of an image.
func (s *Service) check(ctx context.Context, img Image) error {
	if _, err := s.content.Read(img.ConfigBlob); err != nil {
		return err
	}
	for i, id := range img.DiffIDs {
		if _, err := s.layers.Layer(ctx, img.DiffIDs[:i+1]); err != nil {
			return fmt.Errorf("layer %s: %w", id, err)
		}
	}
	return nil
}

// List returns all images, the newest first.
func (s *Service) List() []Image {
	out := s.catalog.List()
	for i, img := range out {
		out[i] = s.served(img)
	}
	slices.SortFunc(out, func(a, b Image) int {
		if c := b.Pulled.Compare(a.Pulled); c != 0 {
			return c
		}
		return strings.Compare(a.ID.String(), b.ID.String())
	})
	return out
}

// served is a copy for a caller.
func (s *Service) served(img Image) Image {
	img.Tags, img.Digests = slices.Clone(img.Tags), slices.Clone(img.Digests)
	for _, name := range slices.Concat(img.Tags, img.Digests) {
		for _, p := range s.settings.Load().Pinned {
			img.Pinned = img.Pinned || names.Match(p, name)
		}
	}
	return img
}

// Resolve finds an image by tag, by digest in its repository, by ID, or by a unique prefix of its ID.
func (s *Service) Resolve(name string) (Image, error) {
	img, err := s.catalog.Find(name, s.names(name))
	if err != nil {
		return Image{}, err
	}
	return s.served(img), nil
}

// Ready is Resolve for an image that is about to be used: its layers are looked for on the disk. If one is missing the image
// is ErrNotFound from then on, until it is pulled again or repaired.
func (s *Service) Ready(ctx context.Context, name string) (Image, error) {
	img, err := s.Resolve(name)
	if err != nil {
		return img, err
	}
	if err := s.look(ctx, img); err != nil {
		return Image{}, fmt.Errorf("%q: %w: it is not whole: %w; it must be pulled again", name, ErrNotFound, err)
	}
	return img, nil
}

// Progress tells of the pulls that are under way, the oldest first: of those of a name, or of all with "".
func (s *Service) Progress(name string) []Progress {
	for _, ref := range s.names(name) {
		if pulls := s.progress.Pulls(ref.String()); len(pulls) > 0 {
			return pulls
		}
	}
	return s.progress.Pulls(name)
}

// Explain tells how an image would be pulled, see registry.Explanation; with probe each endpoint is asked whether it is there.
func (s *Service) Explain(ctx context.Context, name string, probe bool) (any, error) {
	client := s.settings.Load().Registry
	refs, err := client.Names(name)
	if err != nil {
		return nil, fmt.Errorf("explain: %w: %w", ErrInvalid, err)
	}
	explain := client.Explain
	if probe {
		explain = client.Probe
	}
	return explain(ctx, refs[0], registry.Auth{}), nil
}

// Counters returns what was done since the start.
func (s *Service) Counters() progress.Counters { return s.progress.Counters() }

// FsInfo tells what images take of which file system, layers and kept blobs, and what containers have written, from counters. Blobs
// on their way and what is about to be deleted are not in it.
func (s *Service) FsInfo(ctx context.Context) (FsInfo, error) {
	totals, err := s.layers.Totals(ctx)
	if err != nil {
		return FsInfo{}, fmt.Errorf("add up layers: %w", err)
	}
	bytes, files := s.content.Usage()
	images := totals.Layers.Add(snapshot.Usage{Bytes: bytes, Inodes: files})
	return FsInfo{Path: s.config.LayerRoot, Images: images, Containers: totals.Writable}, nil
}

// take waits for a place in a channel of one and returns what leaves it.
func take(ctx context.Context, one chan struct{}) (func(), error) {
	select {
	case one <- struct{}{}:
		return func() { <-one }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
