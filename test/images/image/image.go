package image

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, which predate OCI's and are still what most registries hold.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Spec says what an image is.
type Spec struct {
	Layers []*Layer
	Config v1.ImageConfig
	Docker bool   // Docker's manifest (schema 2) instead of OCI's; layers must be Gzip
	Arch   string // "" is this machine's
}

// Blob is content with its descriptor.
type Blob struct {
	v1.Descriptor
	Data []byte
}

// Image is what a registry holds of an image: content addressed by digest.
type Image struct {
	Blobs     []Blob // config and layers, in the order to push them
	Manifests []Blob // what an index refers to, if Root is one
	Root      Blob   // manifest or index: its digest is the image's
}

// New builds an image.
func New(s Spec) (*Image, error) {
	arch := s.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	img := &Image{}
	config := v1.Image{
		Created:  &epoch,
		Platform: v1.Platform{Architecture: arch, OS: "linux"},
		Config:   s.Config,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	manifest := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Layers:    []v1.Descriptor{},
	}
	configType := v1.MediaTypeImageConfig
	if s.Docker {
		manifest.MediaType, configType = dockerManifest, dockerConfig
	}
	for i, l := range s.Layers {
		mediaType, err := layerType(l.Compression, s.Docker)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		b := blob(mediaType, l.packed)
		img.Blobs = append(img.Blobs, b)
		manifest.Layers = append(manifest.Layers, b.Descriptor)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l.plain))
		config.History = append(config.History, v1.History{Created: &epoch, CreatedBy: fmt.Sprintf("layer %d", i)})
	}
	c, err := encode(configType, config)
	if err != nil {
		return nil, err
	}
	img.Blobs = append(img.Blobs, c)
	manifest.Config = c.Descriptor
	img.Root, err = encode(manifest.MediaType, manifest)
	return img, err
}

// Index builds a multi-platform image: one image an architecture, named by its key.
func Index(archs []string, images []*Image) (*Image, error) {
	all := &Image{}
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for i, img := range images {
		all.Blobs = append(all.Blobs, img.Blobs...)
		all.Manifests = append(all.Manifests, img.Root)
		d := img.Root.Descriptor
		d.Platform = &v1.Platform{Architecture: archs[i], OS: "linux"}
		index.Manifests = append(index.Manifests, d)
	}
	var err error
	all.Root, err = encode(index.MediaType, index)
	return all, err
}

func layerType(c Compression, docker bool) (string, error) {
	switch {
	case docker && c == Gzip:
		return dockerLayer, nil
	case docker:
		return "", fmt.Errorf("a Docker schema 2 layer is compressed with gzip")
	case c == Zstd:
		return v1.MediaTypeImageLayerZstd, nil
	case c == None:
		return v1.MediaTypeImageLayer, nil
	}
	return v1.MediaTypeImageLayerGzip, nil
}

func encode(mediaType string, v any) (Blob, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return Blob{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	return blob(mediaType, data), nil
}

func blob(mediaType string, data []byte) Blob {
	return Blob{
		Descriptor: v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		Data:       data,
	}
}
