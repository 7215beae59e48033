package change

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/mediatype"
	"criserver/pkg/imagesvc/registry"
)

// Options say how an image differs from the one that it is made of, but for its layer.
type Options struct {
	Author, Comment string
	// Changes are as Apply takes them.
	Changes []string
}

// Made are the documents of a new image.
type Made struct {
	Manifest registry.Manifest
	Config   []byte
}

// Commit puts a layer on an image of the given configuration and manifest. ErrInvalid.
func Commit(config ocispec.Image, manifest []byte, layer ocispec.Descriptor, o Options) (Made, error) {
	now := time.Now().UTC()
	if err := Apply(&config.Config, o.Changes); err != nil {
		return Made{}, err
	}
	config.Created, config.Author = &now, o.Author
	config.RootFS.DiffIDs = append(slices.Clone(config.RootFS.DiffIDs), layer.Digest)
	config.History = append(slices.Clone(config.History), ocispec.History{
		Created: &now, CreatedBy: "criserver image commit", Author: o.Author, Comment: o.Comment,
	})
	raw, err := json.Marshal(config)
	if err != nil {
		return Made{}, fmt.Errorf("encode configuration: %w", err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return Made{}, fmt.Errorf("decode manifest: %w", err)
	}
	m.SchemaVersion, m.MediaType, m.Annotations, m.Subject = 2, ocispec.MediaTypeImageManifest, nil, nil
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	m.Layers = append(slices.Clone(m.Layers), layer)
	for i := range m.Layers {
		m.Layers[i].MediaType = mediatype.OCILayer(m.Layers[i].MediaType)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return Made{}, fmt.Errorf("encode manifest: %w", err)
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return Made{registry.Manifest{Descriptor: desc, Data: data}, raw}, nil
}
