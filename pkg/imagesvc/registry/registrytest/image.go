// Package registrytest has real and hostile registries for tests, and images to put into them.
package registrytest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's schema 2.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig   = "application/vnd.docker.container.image.v1+json"
	DockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Layer is a tar and the blob it is shipped as.
type Layer struct {
	MediaType   string
	Plain, Blob []byte
	// PlainDigest is that of a tar that is too large for Plain.
	PlainDigest digest.Digest
	// Annotations are those of its descriptor.
	Annotations map[string]string
}

// DiffID is the digest of the tar.
func (l Layer) DiffID() digest.Digest {
	if l.PlainDigest != "" {
		return l.PlainDigest
	}
	return digest.FromBytes(l.Plain)
}

// Descriptor is how a manifest names the layer.
func (l Layer) Descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: l.MediaType, Digest: digest.FromBytes(l.Blob), Size: int64(len(l.Blob)), Annotations: l.Annotations}
}

// NewLayer makes a layer of files, compressed as the media type says.
func NewLayer(t testing.TB, mediaType string, files map[string][]byte) Layer {
	t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l := Layer{MediaType: mediaType, Plain: plain.Bytes()}
	switch mediaType {
	case ocispec.MediaTypeImageLayer:
		l.Blob = l.Plain
	case ocispec.MediaTypeImageLayerZstd:
		enc, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		l.Blob = enc.EncodeAll(l.Plain, nil)
	default:
		var blob bytes.Buffer
		gz := gzip.NewWriter(&blob)
		if _, err := gz.Write(l.Plain); err != nil {
			t.Fatal(err)
		}
		if err := gz.Close(); err != nil {
			t.Fatal(err)
		}
		l.Blob = blob.Bytes()
	}
	return l
}

// Image is a manifest with all it names. Change what is to be wrong and Seal again.
type Image struct {
	Config   ocispec.Image
	Manifest ocispec.Manifest
	Layers   []Layer

	ConfigData, ManifestData []byte
}

// NewImage makes an OCI image for linux/amd64 and, since tests run there too, for the machine's own architecture.
func NewImage(arch string, layers ...Layer) *Image {
	img := &Image{Layers: layers}
	img.Config.Platform = ocispec.Platform{Architecture: arch, OS: "linux"}
	img.Config.RootFS.Type = "layers"
	img.Manifest = ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig},
		Layers: []ocispec.Descriptor{},
	}
	for _, l := range layers {
		img.Config.RootFS.DiffIDs = append(img.Config.RootFS.DiffIDs, l.DiffID())
		img.Manifest.Layers = append(img.Manifest.Layers, l.Descriptor())
	}
	return img.Seal()
}

// Seal computes the bytes of configuration and manifest.
func (i *Image) Seal() *Image {
	i.ConfigData = mustJSON(i.Config)
	i.Manifest.Config.Digest, i.Manifest.Config.Size = digest.FromBytes(i.ConfigData), int64(len(i.ConfigData))
	i.ManifestData = mustJSON(i.Manifest)
	return i
}

// ID is the digest of the configuration.
func (i *Image) ID() digest.Digest { return digest.FromBytes(i.ConfigData) }

// Digest is that of the manifest.
func (i *Image) Digest() digest.Digest { return digest.FromBytes(i.ManifestData) }

// Size is what there is to download.
func (i *Image) Size() int64 {
	n := len(i.ManifestData) + len(i.ConfigData)
	for _, l := range i.Layers {
		n += len(l.Blob)
	}
	return int64(n)
}

// Descriptor is how an index names the image.
func (i *Image) Descriptor() ocispec.Descriptor {
	p := i.Config.Platform
	return ocispec.Descriptor{MediaType: i.Manifest.MediaType, Digest: i.Digest(), Size: int64(len(i.ManifestData)), Platform: &p}
}

// NewIndex makes an index of manifests.
func NewIndex(mediaType string, manifests ...ocispec.Descriptor) []byte {
	return mustJSON(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Manifests: manifests})
}

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings and numbers
	}
	return data
}
