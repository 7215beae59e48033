package outgoing

import (
	"context"
	"fmt"

	"criserver/pkg/imagesvc/archive"
)

// Archive describes an image to an archive of the format, under names. What the archive reads is verified.
func (s *Store) Archive(ctx context.Context, img Image, names []string, format archive.Format) (archive.ImageSource, error) {
	out := archive.ImageSource{Names: names, ConfigData: img.ConfigData}
	if err := img.parse(); err != nil {
		return out, err
	}
	give := s.layer
	if format == archive.Docker {
		if img.Artifact {
			return out, fmt.Errorf("%w: an artifact has no place in docker's archives, only in those of form %s", ErrInvalid, archive.OCI)
		}
		give = s.plain
	}
	layers := make([]layer, len(img.Layers))
	for i := range img.Layers {
		var err error
		if layers[i], err = give(ctx, &img, i); err != nil {
			return out, err
		}
		out.Layers = append(out.Layers, archive.LayerSource{Desc: layers[i].desc, Open: layers[i].open})
	}
	var err error
	out.Manifest, out.ManifestData, err = img.manifestFor(layers)
	out.Config = img.parsed.Config
	return out, err
}
