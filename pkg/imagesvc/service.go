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
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/content"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/record"
	"criserver/pkg/snapshot"
)

// Errors that the service returns, wrapped; test with errors.Is.
var (
	// ErrNotFound: no image of that name or ID.
	ErrNotFound = errors.New("image not found")
	// ErrInvalid: the image, or its name, is not one that can be used.
	ErrInvalid = errors.New("invalid image")
)

// Image is an image of the node.
type Image struct {
	// ID is the digest of the configuration.
	ID digest.Digest
	// Manifest is the digest of its manifest, which is kept with the configuration.
	Manifest digest.Digest
	// Tags are full names with tags, Digests full names with the digest that was resolved. Both are sorted.
	Tags, Digests []string
	// Size is what was downloaded for it in bytes: compressed layers, manifest, configuration.
	Size int64
	// Config is the image's configuration, DiffIDs its layers, lowest first.
	Config  ocispec.Image
	DiffIDs []digest.Digest
	// Annotations are the manifest's.
	Annotations map[string]string
	Pulled      time.Time
	// Pinned tells that the kubelet shall not remove it to free space.
	Pinned bool `json:"-"`
}

// FsInfo is the file system that images are on, and what they take of it.
type FsInfo struct {
	Path              string
	UsedBytes, Inodes int64
}

// Config is what the service needs to know.
type Config struct {
	// Root is the directory of its own files, LayerRoot that of the snapshotter's, for FsInfo.
	Root, LayerRoot string
	// ParallelLayers is how many layers of one image are fetched at once.
	ParallelLayers int
	// Pinned are name patterns (path.Match) of images that must not be removed to free space.
	Pinned []string
}

// Service holds the images. Its methods may be called at the same time.
type Service struct {
	config   Config
	registry *registry.Client
	layers   snapshot.Layers
	content  *content.Store
	table    *record.Table[Image]

	pulls   shared[pullKey, digest.Digest]
	fetches shared[digest.Digest, struct{}]

	mu     sync.RWMutex // guards the maps; never held across a call to the disk
	images map[digest.Digest]Image
	// broken are images that were not whole at the start. They are out of sight, but keep what is left of them.
	broken map[digest.Digest]Image
	leases map[digest.Digest]int // layers and blobs that pulls under way count on
	// deleting are the layers and blobs that Collect deletes just now; a channel is closed when that is done.
	deleting map[digest.Digest]chan struct{}

	// writing is held, by a value in it, while records are written, so that they are in the order of memory; collecting
	// by the one Collect at work.
	writing, collecting chan struct{}
}

// New opens the image records in the database, which must be synced (record.Options). Images whose layers or
// configuration are not there whole are out of sight until they are pulled again; what is left of them is used then.
// The database and the layers stay the caller's, who ends the use of both with Close.
func New(ctx context.Context, c Config, db *record.DB, r *registry.Client, layers snapshot.Layers) (*Service, error) {
	for _, p := range c.Pinned {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("pinned image pattern %q: %w", p, err)
		}
	}
	blobs, err := content.New(filepath.Join(c.Root, "content"))
	if err != nil {
		return nil, err
	}
	table, err := record.NewTable[Image](ctx, db, "images")
	if err != nil {
		return nil, fmt.Errorf("open image records: %w", err)
	}
	s := &Service{
		config: c, registry: r, layers: layers, content: blobs, table: table,
		images: map[digest.Digest]Image{}, broken: map[digest.Digest]Image{}, leases: map[digest.Digest]int{},
		deleting: map[digest.Digest]chan struct{}{}, writing: make(chan struct{}, 1), collecting: make(chan struct{}, 1),
	}
	return s, s.load(ctx)
}

// Close cancels the pulls under way and waits until none touches the layers any more.
func (s *Service) Close() {
	s.pulls.close()
	s.fetches.close()
}

// load reads the records.
func (s *Service) load(ctx context.Context) error {
	images, err := s.table.Load(ctx)
	if images == nil && err != nil {
		return fmt.Errorf("read image records: %w", err)
	}
	if err != nil {
		logrus.WithError(err).Error("some image records cannot be read")
	}
	tagOnce(images)
	for _, img := range images {
		if err := s.check(ctx, img); err != nil {
			logrus.WithError(err).WithFields(logrus.Fields{"image": img.ID, "tags": img.Tags}).
				Error("an image is not whole and must be pulled again")
			s.broken[img.ID] = img
			continue
		}
		s.images[img.ID] = img
	}
	return nil
}

// tagOnce leaves each tag with the image that was pulled last: put, interrupted, leaves it with two.
func tagOnce(images map[string]Image) {
	owners := map[string]Image{}
	for _, img := range images {
		for _, tag := range img.Tags {
			if owner, ok := owners[tag]; !ok || img.Pulled.After(owner.Pulled) {
				owners[tag] = img
			}
		}
	}
	for key, img := range images {
		img.Tags = slices.DeleteFunc(img.Tags, func(tag string) bool { return owners[tag].ID != img.ID })
		images[key] = img
	}
}

// check tells what is missing of an image.
func (s *Service) check(ctx context.Context, img Image) error {
	if _, err := s.content.Read(img.ID); err != nil {
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
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Image, 0, len(s.images))
	for _, img := range s.images {
		out = append(out, s.served(img))
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
		for _, p := range s.config.Pinned {
			if ok, _ := path.Match(p, name); ok {
				img.Pinned = true
			}
		}
	}
	return img
}

// Resolve finds an image by tag, by digest in its repository, by ID, or by a unique prefix of its ID.
func (s *Service) Resolve(name string) (Image, error) {
	refs := s.names(name)
	s.mu.RLock()
	defer s.mu.RUnlock()
	img, err := find(s.images, name, refs)
	if err != nil {
		return Image{}, err
	}
	return s.served(img), nil
}

// FsInfo tells what the layers take of which file system, from records.
func (s *Service) FsInfo(ctx context.Context) (FsInfo, error) {
	info := FsInfo{Path: s.config.LayerRoot}
	layers, err := s.layers.ListLayers(ctx)
	if err != nil {
		return info, fmt.Errorf("measure layers: %w", err)
	}
	chains := map[digest.Digest][]digest.Digest{}
	s.mu.RLock()
	for _, img := range s.images {
		for i, d := range img.DiffIDs {
			chains[d] = img.DiffIDs[:i+1]
		}
	}
	s.mu.RUnlock()
	for _, d := range layers {
		chain, ok := chains[d]
		if !ok {
			chain = []digest.Digest{d} // of a pull under way, or of a removed image
		}
		usage, err := s.layers.Layer(ctx, chain)
		if errors.Is(err, snapshot.ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return info, fmt.Errorf("measure layers: %w", err)
		}
		info.UsedBytes += usage.Bytes
		info.Inodes += usage.Inodes
	}
	return info, nil
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

// put makes an image visible under a reference that resolved to a digest. Its record is written first, then that of the
// image that the tag named before: interrupted, the tag is with both, and load decides.
func (s *Service) put(ctx context.Context, img Image, ref registry.Reference, resolved digest.Digest) error {
	leave, err := take(ctx, s.writing)
	if err != nil {
		return err
	}
	defer leave()
	img, others := s.retag(img, ref, resolved)
	if err := s.table.Put(ctx, img.ID.String(), img); err != nil {
		return err
	}
	s.mu.Lock()
	s.images[img.ID] = img
	delete(s.broken, img.ID)
	for _, other := range others {
		if _, ok := s.broken[other.ID]; ok {
			s.broken[other.ID] = other
		} else {
			s.images[other.ID] = other
		}
	}
	s.mu.Unlock()
	for _, other := range others {
		if err := s.table.Put(ctx, other.ID.String(), other); err != nil {
			// The pull has done its work; load would come to the same result.
			logrus.WithError(err).WithField("image", other.ID).Warn("moving a tag is recorded on one side only")
		}
	}
	return nil
}

// retag gives the image its names, old and new, and returns with it those that lose one.
func (s *Service) retag(img Image, ref registry.Reference, resolved digest.Digest) (Image, []Image) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	old, ok := s.images[img.ID]
	if !ok {
		old = s.broken[img.ID]
	}
	img.Tags, img.Digests = slices.Clone(old.Tags), insert(slices.Clone(old.Digests), ref.WithDigest(resolved).String())
	if ref.Tag() == "" {
		return img, nil
	}
	tag := ref.String()
	img.Tags = insert(img.Tags, tag)
	var others []Image
	for _, all := range []map[digest.Digest]Image{s.images, s.broken} {
		for _, other := range all {
			if other.ID != img.ID && slices.Contains(other.Tags, tag) {
				other.Tags = slices.DeleteFunc(slices.Clone(other.Tags), func(t string) bool { return t == tag })
				others = append(others, other)
			}
		}
	}
	return img, others
}

func insert(list []string, v string) []string {
	if slices.Contains(list, v) {
		return list
	}
	list = append(list, v)
	slices.Sort(list)
	return list
}
