// Package document reads the documents of an image, index, manifest and configuration, which come from strangers, and checks
// them against each other and for what can never work, before anything else of the image is fetched.
package document

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/mediatype"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/imagesvc/verify"
)

// Docker's media types of schema 1, which nobody reads any more.
const (
	dockerManifestOld = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerManifestV1  = "application/vnd.docker.distribution.manifest.v1+json"
)

const (
	// maxLayers is more than any file system driver can stack.
	maxLayers = 500
	// maxConfig is the largest configuration in bytes that is read.
	maxConfig = 8 << 20
	// maxBlob is more than a layer can have in bytes, and little enough for sums of sizes.
	maxBlob = 1 << 48
	// maxNested is how deep indexes are followed into indexes.
	maxNested = 2
)

// ErrInvalid says that the image is not one that can be used.
var ErrInvalid = errors.New("invalid image")

// Origin is where an image comes from: a registry or an archive. What it returns is verified.
type Origin interface {
	// Manifest returns the document of the digest, or with "" the one that the image's name stands for.
	Manifest(ctx context.Context, d digest.Digest) (registry.Manifest, error)
	// Content returns a small blob.
	Content(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
}

// Image is an image as its origin has it: documents that were read, verified and checked against each other.
type Image struct {
	// Resolved is what the name stands for: an index, or the manifest itself.
	Resolved registry.Manifest
	Manifest registry.Manifest
	// Parsed is the manifest's content.
	Parsed ocispec.Manifest
	// Config is the configuration, RawConfig its bytes. An artifact's is not parsed.
	Config    ocispec.Image
	RawConfig []byte
	// Layers name the layers, lowest first, as snapshot drivers know them: an image's diffIDs, an artifact's FileIDs.
	Layers []digest.Digest
	// Artifact tells that the layers are not tars but files, of the names Files.
	Artifact bool
	Files    []string
}

// Read fetches the documents of an image for this machine's platform. Its errors are the origin's, and ErrInvalid.
func Read(ctx context.Context, o Origin) (*Image, error) {
	resolved, err := o.Manifest(ctx, "")
	if err != nil {
		return nil, err
	}
	img := &Image{Resolved: resolved, Manifest: resolved}
	for depth := 0; ; depth++ {
		mediaType, err := typeOf(img.Manifest)
		if err != nil {
			return nil, err
		}
		if mediaType == ocispec.MediaTypeImageManifest {
			break
		}
		if depth > maxNested {
			return nil, fmt.Errorf("%w: indexes are nested more than %d deep", ErrInvalid, maxNested)
		}
		chosen, err := pickPlatform(img.Manifest)
		if err != nil {
			return nil, err
		}
		if img.Manifest, err = o.Manifest(ctx, chosen.Digest); err != nil {
			return nil, err
		}
	}
	if err := img.parseManifest(); err != nil {
		return nil, err
	}
	if img.RawConfig, err = o.Content(ctx, img.Parsed.Config); err != nil {
		return nil, err
	}
	if img.Artifact {
		return img, nil
	}
	return img, img.parseConfig()
}

// typeOf tells whether a document is an OCI manifest or index, or Docker's of the same form. What the document says of
// itself counts more than what the server says: servers are known to send text/plain, and OCI documents need say nothing.
func typeOf(m registry.Manifest) (string, error) {
	var doc struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
		Layers        []json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(m.Data, &doc); err != nil {
		return "", fmt.Errorf("decode manifest %s: %w: %w", m.Digest, ErrInvalid, err)
	}
	mediaType := cmp.Or(doc.MediaType, m.MediaType)
	switch {
	case doc.SchemaVersion == 1, mediaType == dockerManifestOld, mediaType == dockerManifestV1:
		return "", fmt.Errorf("%w: its manifest is of Docker's schema 1, which registries and runtimes have given up; push it again "+
			"with a current tool", ErrInvalid)
	case doc.Manifests != nil && doc.Layers != nil:
		// Readers that look at different fields would see different images.
		return "", fmt.Errorf("%w: document %s is a manifest and an index at once", ErrInvalid, m.Digest)
	case !strings.HasPrefix(mediaType, "application/vnd.") && doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case !strings.HasPrefix(mediaType, "application/vnd.") && doc.Layers != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	switch {
	case mediatype.IsManifest(mediaType):
		return ocispec.MediaTypeImageManifest, nil
	case mediatype.IsIndex(mediaType):
		return ocispec.MediaTypeImageIndex, nil
	}
	return "", fmt.Errorf("%w: media type %q is no image", ErrInvalid, mediaType)
}

// MediaType is what a manifest says of itself; "" if it says nothing.
func MediaType(manifest []byte) string {
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(manifest, &doc) != nil {
		return ""
	}
	return doc.MediaType
}

// pickPlatform chooses the best manifest of an index for this machine. One that names no platform is the last resort.
func pickPlatform(m registry.Manifest) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(m.Data, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("decode index %s: %w: %w", m.Digest, ErrInvalid, err)
	}
	matcher := platforms.Default()
	var best, unnamed *ocispec.Descriptor
	var offered []string
	for i := range index.Manifests {
		d := &index.Manifests[i]
		if d.Platform == nil {
			if unnamed == nil {
				unnamed = d
			}
			continue
		}
		offered = append(offered, platforms.Format(*d.Platform))
		if matcher.Match(*d.Platform) && (best == nil || matcher.Less(*d.Platform, *best.Platform)) {
			best = d
		}
	}
	if best == nil {
		best = unnamed
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: there is none for %s, only for %s", ErrInvalid, platforms.DefaultString(),
			strings.Join(offered, ", "))
	}
	if err := verify.CheckDigest(best.Digest); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("index %s: %w: %w", m.Digest, ErrInvalid, err)
	}
	return *best, nil
}

// parseManifest checks all that can be without another fetch, so that nothing is fetched for what cannot be used.
func (img *Image) parseManifest() error {
	m := &img.Parsed
	if err := json.Unmarshal(img.Manifest.Data, m); err != nil {
		return fmt.Errorf("decode manifest %s: %w: %w", img.Manifest.Digest, ErrInvalid, err)
	}
	img.Artifact = !mediatype.IsConfig(m.Config.MediaType) || m.ArtifactType != "" && m.ArtifactType != ocispec.MediaTypeImageConfig
	if err := verify.CheckDigest(m.Config.Digest); err != nil {
		return fmt.Errorf("configuration: %w: %w", ErrInvalid, err)
	}
	if m.Config.Size < 0 || m.Config.Size > maxConfig {
		return fmt.Errorf("%w: its configuration has %d bytes, at most %d are read", ErrInvalid, m.Config.Size, maxConfig)
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("%w: it has %d layers, at most %d can be stacked", ErrInvalid, len(m.Layers), maxLayers)
	}
	for _, l := range m.Layers {
		if err := checkLayer(l, img.Artifact); err != nil {
			return fmt.Errorf("layer %s: %w: %w", l.Digest, ErrInvalid, err)
		}
	}
	if img.Artifact {
		return img.nameFiles()
	}
	return nil
}

func checkLayer(l ocispec.Descriptor, artifact bool) error {
	if err := verify.CheckDigest(l.Digest); err != nil {
		return err
	}
	if l.Size < 0 || l.Size > maxBlob {
		return fmt.Errorf("it cannot have the size %d", l.Size)
	}
	if artifact {
		return nil
	}
	// An empty stream is none of the compressions: this asks for the media type alone.
	plain, err := unpack.Decompress(context.Background(), l.MediaType, strings.NewReader(""), unpack.Limits{})
	if err != nil {
		return err
	}
	return plain.Close()
}

// parseConfig checks that configuration and manifest speak of the same layers.
func (img *Image) parseConfig() error {
	if err := json.Unmarshal(img.RawConfig, &img.Config); err != nil {
		return fmt.Errorf("decode configuration %s: %w: %w", img.Parsed.Config.Digest, ErrInvalid, err)
	}
	fs := img.Config.RootFS
	if len(fs.DiffIDs) != len(img.Parsed.Layers) {
		return fmt.Errorf("%w: the configuration has %d layers, the manifest %d", ErrInvalid, len(fs.DiffIDs), len(img.Parsed.Layers))
	}
	for _, d := range fs.DiffIDs {
		if err := verify.CheckDigest(d); err != nil {
			return fmt.Errorf("%w: diff ID: %w", ErrInvalid, err)
		}
	}
	if img.Config.OS != "" && img.Config.OS != "linux" {
		return fmt.Errorf("%w: it is for %s", ErrInvalid, img.Config.OS)
	}
	img.Layers = fs.DiffIDs
	return nil
}

// ID is what the node calls the image: the digest of an image's configuration; of an artifact, whose configuration is
// often the same as others', that of the manifest.
func (img *Image) ID() digest.Digest {
	if img.Artifact {
		return img.Manifest.Digest
	}
	return img.Parsed.Config.Digest
}

// Size is what there is to download, in bytes.
func (img *Image) Size() int64 {
	total := img.Manifest.Size + img.Parsed.Config.Size
	for _, l := range img.Parsed.Layers {
		total += l.Size
	}
	return total
}
