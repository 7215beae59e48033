package imagesvc

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/imagesvc/verify"
)

// Docker's media types, which most images have.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifestOld  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerManifestV1   = "application/vnd.docker.distribution.manifest.v1+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
)

const (
	// maxLayers is more than any file system driver can stack.
	maxLayers = 500
	// maxConfig is the largest configuration in bytes that is read.
	maxConfig = 8 << 20
	// maxNested is how deep indexes are followed into indexes.
	maxNested = 2
)

// source is an image as a registry has it: documents that were read, verified and checked against each other.
type source struct {
	repo *registry.Repository
	// resolved is what the reference is of: an index, or the manifest itself.
	resolved registry.Manifest
	manifest registry.Manifest
	parsed   ocispec.Manifest
	// config is the configuration, raw its bytes.
	config ocispec.Image
	raw    []byte
}

// read fetches the documents of an image for this machine's platform.
func read(ctx context.Context, repo *registry.Repository) (*source, error) {
	resolved, err := repo.Manifest(ctx, "")
	if err != nil {
		return nil, err
	}
	src := &source{repo: repo, resolved: resolved, manifest: resolved}
	for depth := 0; ; depth++ {
		mediaType, err := typeOf(src.manifest)
		if err != nil {
			return nil, err
		}
		if mediaType == ocispec.MediaTypeImageManifest {
			break
		}
		if depth > maxNested {
			return nil, fmt.Errorf("%w: indexes are nested more than %d deep", ErrInvalid, maxNested)
		}
		chosen, err := pickPlatform(src.manifest)
		if err != nil {
			return nil, err
		}
		if src.manifest, err = repo.Manifest(ctx, chosen.Digest); err != nil {
			return nil, err
		}
	}
	if err := src.parseManifest(); err != nil {
		return nil, err
	}
	return src, src.readConfig(ctx)
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
	switch mediaType {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		return ocispec.MediaTypeImageManifest, nil
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		return ocispec.MediaTypeImageIndex, nil
	}
	return "", fmt.Errorf("%w: media type %q is no image", ErrInvalid, mediaType)
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
func (src *source) parseManifest() error {
	m := &src.parsed
	if err := json.Unmarshal(src.manifest.Data, m); err != nil {
		return fmt.Errorf("decode manifest %s: %w: %w", src.manifest.Digest, ErrInvalid, err)
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig:
	default:
		return fmt.Errorf("%w: it is an artifact, not an image: its configuration has media type %q", ErrInvalid, m.Config.MediaType)
	}
	if m.Config.Size < 0 || m.Config.Size > maxConfig {
		return fmt.Errorf("%w: its configuration has %d bytes, at most %d are read", ErrInvalid, m.Config.Size, maxConfig)
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("%w: it has %d layers, at most %d can be stacked", ErrInvalid, len(m.Layers), maxLayers)
	}
	for _, l := range m.Layers {
		if err := checkLayer(l); err != nil {
			return fmt.Errorf("layer %s: %w: %w", l.Digest, ErrInvalid, err)
		}
	}
	return nil
}

func checkLayer(l ocispec.Descriptor) error {
	if err := verify.CheckDigest(l.Digest); err != nil {
		return err
	}
	if l.Size < 0 {
		return fmt.Errorf("size %d", l.Size)
	}
	// An empty stream is none of the compressions: this asks for the media type alone.
	plain, err := unpack.Decompress(l.MediaType, strings.NewReader(""))
	if err != nil {
		return err
	}
	return plain.Close()
}

// readConfig fetches the configuration and checks that it and the manifest speak of the same layers.
func (src *source) readConfig(ctx context.Context) error {
	desc := src.parsed.Config
	blob, err := src.repo.Blob(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	if src.raw, err = io.ReadAll(blob); err != nil {
		return err
	}
	if err := json.Unmarshal(src.raw, &src.config); err != nil {
		return fmt.Errorf("decode configuration %s: %w: %w", desc.Digest, ErrInvalid, err)
	}
	fs := src.config.RootFS
	if len(fs.DiffIDs) != len(src.parsed.Layers) {
		return fmt.Errorf("%w: the configuration has %d layers, the manifest %d", ErrInvalid, len(fs.DiffIDs), len(src.parsed.Layers))
	}
	for _, d := range fs.DiffIDs {
		if err := verify.CheckDigest(d); err != nil {
			return fmt.Errorf("%w: diff ID: %w", ErrInvalid, err)
		}
	}
	if src.config.OS != "" && src.config.OS != "linux" {
		return fmt.Errorf("%w: it is for %s", ErrInvalid, src.config.OS)
	}
	return nil
}

// size is what there is to download.
func (src *source) size() int64 {
	total := src.manifest.Size + src.parsed.Config.Size
	for _, l := range src.parsed.Layers {
		total += l.Size
	}
	return total
}
