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
	"maps"
	"path"
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

	pulls  shared[string, digest.Digest]
	fetchs shared[digest.Digest, snapshot.Usage]

	mu     sync.RWMutex
	images map[digest.Digest]Image
	usage  map[digest.Digest]snapshot.Usage // of the images' layers
	leases map[digest.Digest]int            // layers and blobs that pulls under way count on
	// deleting are the layers and blobs that Collect deletes just now; a channel is closed when that is done.
	deleting map[digest.Digest]chan struct{}
	// writing is held while records are written, so that they are in the order of memory.
	writing sync.Mutex
	// collecting is held by the one Collect at work.
	collecting chan struct{}
}

// New opens the image records in the database, which must be synced (record.Options), and drops those whose layers or
// configuration are not there whole. The database and the layers stay the caller's.
func New(ctx context.Context, c Config, db *record.DB, r *registry.Client, layers snapshot.Layers) (*Service, error) {
	blobs, err := content.New(path.Join(c.Root, "content"))
	if err != nil {
		return nil, err
	}
	table, err := record.NewTable[Image](ctx, db, "images")
	if err != nil {
		return nil, fmt.Errorf("open image records: %w", err)
	}
	for _, p := range c.Pinned {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("pinned image pattern %q: %w", p, err)
		}
	}
	s := &Service{
		config: c, registry: r, layers: layers, content: blobs, table: table,
		images: map[digest.Digest]Image{}, usage: map[digest.Digest]snapshot.Usage{}, leases: map[digest.Digest]int{},
		deleting: map[digest.Digest]chan struct{}{}, collecting: make(chan struct{}, 1),
	}
	return s, s.load(ctx)
}

// load reads the records. An image that is not whole any more is not served: the next pull makes it anew.
func (s *Service) load(ctx context.Context) error {
	images, err := s.table.Load(ctx)
	if err != nil {
		logrus.WithError(err).Error("some image records cannot be read")
	}
	for key, img := range images {
		usage, err := s.check(ctx, img)
		if err != nil {
			logrus.WithError(err).WithField("image", key).Error("an image is not whole and must be pulled again")
			if err := s.table.Delete(ctx, key); err != nil {
				return err
			}
			continue
		}
		s.images[img.ID] = img
		maps.Copy(s.usage, usage)
	}
	return nil
}

// check tells the usage of the image's layers, or what is missing.
func (s *Service) check(ctx context.Context, img Image) (map[digest.Digest]snapshot.Usage, error) {
	if _, err := s.content.Read(img.ID); err != nil {
		return nil, err
	}
	usage := map[digest.Digest]snapshot.Usage{}
	for i, id := range img.DiffIDs {
		u, err := s.layers.Layer(ctx, img.DiffIDs[:i+1])
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", id, err)
		}
		usage[id] = u
	}
	return usage, nil
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
	s.mu.RLock()
	defer s.mu.RUnlock()
	img, err := s.find(name)
	if err != nil {
		return Image{}, err
	}
	return s.served(img), nil
}

// minPrefix is the shortest prefix of an ID that is taken for one.
const minPrefix = 6

// find needs the lock.
func (s *Service) find(name string) (Image, error) {
	hex := strings.TrimPrefix(name, "sha256:")
	if img, ok := s.images[digest.Digest("sha256:"+hex)]; ok {
		return img, nil
	}
	if ref, err := registry.Parse(name); err == nil {
		for _, img := range s.images {
			switch {
			case ref.Digest != "" && slices.Contains(img.Digests, ref.Name()+"@"+ref.Digest.String()),
				ref.Digest == "" && slices.Contains(img.Tags, ref.Tagged()):
				return img, nil
			}
		}
	}
	if len(hex) >= minPrefix && strings.Trim(hex, "0123456789abcdef") == "" {
		var found []Image
		for id, img := range s.images {
			if strings.HasPrefix(id.Encoded(), hex) {
				found = append(found, img)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			return Image{}, fmt.Errorf("%w: %d images have IDs that begin with %s", ErrInvalid, len(found), hex)
		}
	}
	return Image{}, fmt.Errorf("%q: %w", name, ErrNotFound)
}

// FsInfo tells what the images take of which file system, from records.
func (s *Service) FsInfo(context.Context) (FsInfo, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	info := FsInfo{Path: s.config.LayerRoot}
	for _, u := range s.usage {
		info.UsedBytes += u.Bytes
		info.Inodes += u.Inodes
	}
	return info, nil
}

// put makes an image visible under a reference that resolved to a digest: its record is written first. Where the tag named
// another image, that one loses it.
func (s *Service) put(ctx context.Context, img Image, ref registry.Reference, resolved digest.Digest, usage map[digest.Digest]snapshot.Usage) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.RLock()
	changed := map[digest.Digest]Image{}
	if old, ok := s.images[img.ID]; ok {
		img.Tags, img.Digests = slices.Clone(old.Tags), slices.Clone(old.Digests)
	}
	if tag := ref.Tagged(); tag != "" && ref.Digest == "" {
		for id, other := range s.images {
			if id != img.ID && slices.Contains(other.Tags, tag) {
				other.Tags = slices.DeleteFunc(slices.Clone(other.Tags), func(t string) bool { return t == tag })
				changed[id] = other
			}
		}
		img.Tags = insert(img.Tags, tag)
	}
	img.Digests = insert(img.Digests, ref.Name()+"@"+resolved.String())
	changed[img.ID] = img
	s.mu.RUnlock()
	for id, c := range changed {
		if err := s.table.Put(ctx, id.String(), c); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.images, changed)
	maps.Copy(s.usage, usage)
	return nil
}

func insert(list []string, v string) []string {
	if slices.Contains(list, v) {
		return list
	}
	list = append(list, v)
	slices.Sort(list)
	return list
}
