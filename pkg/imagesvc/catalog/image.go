package catalog

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image of the node.
type Image struct {
	// ID is the digest of the configuration, of an artifact that of its manifest.
	ID digest.Digest
	// Manifest is the digest of its manifest, ConfigBlob that of its configuration. Both are kept.
	Manifest, ConfigBlob digest.Digest
	// Artifact tells that it is not a root file system but a set of files, to be mounted into containers.
	Artifact bool `json:",omitempty"`
	// Tags are full names with tags, Digests full names with the digest that was resolved. Both are sorted.
	Tags, Digests []string
	// Size is what was downloaded for it in bytes: compressed layers, manifest, configuration.
	Size int64
	// Config is the image's configuration; an artifact's is empty. DiffIDs are its layers, lowest first, by which snapshots
	// are made.
	Config  ocispec.Image
	DiffIDs []digest.Digest
	// Blobs are the compressed layers that are kept as they came.
	Blobs []digest.Digest `json:",omitempty"`
	// Annotations are the manifest's.
	Annotations map[string]string
	Pulled      time.Time
	// Pinned tells that the kubelet shall not remove it to free space.
	Pinned bool `json:"-"`
}

// Parts are the digests of all that it is made of, each once: documents, layers, kept blobs.
func (img Image) Parts() []digest.Digest {
	all := slices.Concat([]digest.Digest{img.ConfigBlob, img.Manifest}, img.DiffIDs, img.Blobs)
	slices.Sort(all)
	return slices.Compact(all)
}

// names are all names.
func (img Image) names() []string { return slices.Concat(img.Tags, img.Digests) }

// without is the image with one tag less.
func (img Image) without(tag string) Image {
	img.Tags = slices.DeleteFunc(slices.Clone(img.Tags), func(t string) bool { return t == tag })
	return img
}
