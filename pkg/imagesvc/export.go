package imagesvc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/registry"
)

// Export writes images into an archive. An image that was given by a tag has that name in it, others all their tags. Layers
// are as they came where they are kept so (Config.KeepBlobs), and plain tars otherwise: the image ID stays the same, the
// manifest is another one. What is in the archive has been verified. ErrNotFound.
func (s *Service) Export(ctx context.Context, w io.Writer, names []string, format Format) error {
	forms := map[Format]archive.Format{FormatOCI: archive.OCI, FormatDocker: archive.Docker}
	if _, ok := forms[format]; !ok {
		return fmt.Errorf("export: %w: format %q is neither %s nor %s", ErrInvalid, format, FormatOCI, FormatDocker)
	}
	if len(names) == 0 {
		return fmt.Errorf("export: %w: no image is named", ErrInvalid)
	}
	var sources []archive.ImageSource
	for _, name := range names {
		h, err := s.hold(ctx, name)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		defer h.release()
		source, err := s.exported(ctx, h, name, format)
		if err != nil {
			return fmt.Errorf("export %s: %w", name, err)
		}
		sources = append(sources, source)
	}
	if err := archive.Write(ctx, w, forms[format], sources); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// exported describes an image to the archive.
func (s *Service) exported(ctx context.Context, h *held, name string, format Format) (archive.ImageSource, error) {
	if err := h.read(s); err != nil {
		return archive.ImageSource{}, err
	}
	if h.Artifact && format == FormatDocker {
		return archive.ImageSource{}, fmt.Errorf("%w: an artifact has no place in docker's archives, only in those of form %s", ErrInvalid, FormatOCI)
	}
	layer := s.giving
	if format == FormatDocker {
		layer = s.plainly
	}
	out := archive.ImageSource{Names: exportNames(h.Image, name), ConfigData: h.configData}
	layers := make([]giving, len(h.DiffIDs))
	for i := range h.DiffIDs {
		var err error
		if layers[i], err = layer(ctx, h, i); err != nil {
			return out, err
		}
		out.Layers = append(out.Layers, archive.LayerSource{Desc: layers[i].desc, Open: layers[i].open})
	}
	out.ManifestData, out.Manifest, out.Config = h.manifestFor(layers)
	return out, nil
}

// exportNames are the names that an image has in an archive.
func exportNames(img Image, asked string) []string {
	if ref, err := registry.Parse(asked); err == nil && slices.Contains(img.Tags, ref.String()) {
		return []string{ref.String()}
	}
	return slices.Clone(img.Tags)
}

// manifestFor is the image's manifest if the layers are those that it names, or else one for those layers.
func (h *held) manifestFor(layers []giving) (data []byte, desc, config ocispec.Descriptor) {
	m := h.manifest
	exact := !slices.ContainsFunc(layers, func(g giving) bool { return !g.exact })
	for i, g := range layers {
		exact = exact && g.desc.Digest == m.Layers[i].Digest
	}
	if exact {
		desc = ocispec.Descriptor{MediaType: m.MediaType, Digest: h.Manifest, Size: int64(len(h.manifestData)), ArtifactType: m.ArtifactType}
		if desc.MediaType == "" {
			desc.MediaType = ocispec.MediaTypeImageManifest
		}
		return h.manifestData, desc, m.Config
	}
	m.MediaType, m.Config.MediaType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
	m.SchemaVersion = 2
	m.Layers = make([]ocispec.Descriptor, len(layers))
	for i, g := range layers {
		m.Layers[i] = g.desc
		m.Layers[i].MediaType = ociLayer(g.desc.MediaType)
	}
	data, err := json.Marshal(m)
	if err != nil {
		panic(err) // a value of strings and numbers, which was made from JSON
	}
	return data, ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, m.Config
}

// ociLayer is OCI's name of docker's media type of a layer; others stay.
func ociLayer(mediaType string) string {
	switch mediaType {
	case "application/vnd.docker.image.rootfs.diff.tar":
		return ocispec.MediaTypeImageLayer
	case "application/vnd.docker.image.rootfs.diff.tar.gzip":
		return ocispec.MediaTypeImageLayerGzip
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return ocispec.MediaTypeImageLayerZstd
	}
	return mediaType
}
