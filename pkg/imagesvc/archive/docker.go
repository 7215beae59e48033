package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/compression"
)

// dockerItem is one image of a manifest.json (moby, image/spec/v1.2.md). The names of files may be any.
type dockerItem struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

const (
	// maxItems bounds the images of a manifest.json: for each, a manifest is made.
	maxItems = 1000
	// maxLayers is more than any file system driver can stack.
	maxLayers = 500
)

// readDocker finds the images of manifest.json. Those that index.json has as well get their names from here if it gives none
// at all: a docker of version 25 and later writes both, and of several images without a name only the first into index.json.
func (a *Archive) readDocker(ctx context.Context, s *spool, t *table, data []byte) error {
	var items []dockerItem
	if err := json.Unmarshal(data, &items); err != nil {
		return fmt.Errorf("decode manifest.json: %w: %w", ErrInvalid, err)
	}
	if len(items) > maxItems {
		return fmt.Errorf("%w: manifest.json has %d images, at most %d are read", ErrInvalid, len(items), maxItems)
	}
	byConfig, named, err := a.known(ctx, t.images)
	if err != nil {
		return err
	}
	for _, item := range items {
		config, ok := s.lookup(item.Config)
		if !ok {
			return fmt.Errorf("%w: manifest.json names the configuration %q, which is missing", ErrInvalid, item.Config)
		}
		var names []string
		for _, tag := range item.RepoTags {
			full, err := fullName(tag)
			if err != nil {
				return fmt.Errorf("manifest.json: %w", err)
			}
			names = append(names, full)
		}
		root, ok := byConfig[config.digest]
		if ok && named {
			continue
		}
		if !ok {
			if root, err = a.makeManifest(s, item, config); err != nil {
				return err
			}
		}
		t.include(root, names, "")
	}
	return nil
}

// known gives images by their configurations, and says whether one of them has a name.
func (a *Archive) known(ctx context.Context, images []Image) (map[digest.Digest]ocispec.Descriptor, bool, error) {
	byConfig, seen, named := map[digest.Digest]ocispec.Descriptor{}, map[digest.Digest]bool{}, false
	for _, img := range images {
		named = named || len(img.Names) > 0
		configs := map[digest.Digest]bool{}
		if err := a.configs(ctx, img.Root.Digest, 0, seen, configs); err != nil {
			return nil, false, err
		}
		for d := range configs {
			if _, ok := byConfig[d]; !ok {
				byConfig[d] = img.Root
			}
		}
	}
	return byConfig, named, nil
}

// lookup finds a file that a table of contents names.
func (s *spool) lookup(name string) (file, bool) {
	cleaned, err := cleanName(name)
	if err != nil {
		return file{}, false
	}
	return s.find(cleaned)
}

// makeManifest gives an image of a docker archive the manifest that such archives lack. It is OCI's, whose layers may be
// plain, of gzip and of zstd; the configuration is the same in both worlds.
func (a *Archive) makeManifest(s *spool, item dockerItem, config file) (ocispec.Descriptor, error) {
	if len(item.Layers) > maxLayers {
		return ocispec.Descriptor{}, fmt.Errorf("%w: image %q has %d layers, at most %d can be stacked", ErrInvalid, item.Config,
			len(item.Layers), maxLayers)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config.digest, Size: config.size},
		Layers: []ocispec.Descriptor{},
	}
	for _, name := range item.Layers {
		f, ok := s.lookup(name)
		if !ok {
			return ocispec.Descriptor{}, fmt.Errorf("%w: manifest.json names the layer %q of image %q, which is missing", ErrInvalid, name,
				item.Config)
		}
		mediaType, err := layerType(blobPath(a.dir, f.digest))
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("read layer %q: %w", name, err)
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: f.digest, Size: f.size})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode manifest: %w", err)
	}
	d, err := a.add(data)
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(data))}, err
}

// layerType is the media type of a layer by its content.
func layerType(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	magic := make([]byte, compression.MagicLen)
	n, err := io.ReadFull(f, magic)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	switch compression.Of(magic[:n]) {
	case compression.Gzip:
		return ocispec.MediaTypeImageLayerGzip, nil
	case compression.Zstd:
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return ocispec.MediaTypeImageLayer, nil
}
