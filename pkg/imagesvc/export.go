package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/change"
	"criserver/pkg/imagesvc/outgoing"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/unpack"
)

// Export writes images into an archive, see package outgoing. An image that was given by a tag has that name in it, others all
// their tags. What is in the archive has been verified. ErrNotFound, ErrInvalid.
func (s *Service) Export(ctx context.Context, w io.Writer, names []string, format Format) error {
	form, ok := map[Format]archive.Format{FormatOCI: archive.OCI, FormatDocker: archive.Docker}[format]
	if !ok {
		return fmt.Errorf("export: %w: format %q is neither %s nor %s", ErrInvalid, format, FormatOCI, FormatDocker)
	}
	if len(names) == 0 {
		return fmt.Errorf("export: %w: no image is named", ErrInvalid)
	}
	var sources []archive.ImageSource
	for _, name := range names {
		img, release, err := s.hold(ctx, name)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		defer release()
		out, err := s.outgoing(img)
		if err != nil {
			return fmt.Errorf("export %s: %w", name, err)
		}
		source, err := s.store().Archive(ctx, out, exportNames(img, s.names(name)), form)
		if err != nil {
			return fmt.Errorf("export %s: %w", name, invalid(err))
		}
		sources = append(sources, source)
	}
	if err := archive.Write(ctx, w, form, sources); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// invalid makes an error of a package below one of ErrInvalid.
func invalid(err error) error {
	for _, below := range []error{outgoing.ErrInvalid, archive.ErrInvalid, change.ErrInvalid, unpack.ErrInvalid} {
		if errors.Is(err, below) && !errors.Is(err, ErrInvalid) {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return err
}

// exportNames are the names that an image has in an archive.
func exportNames(img Image, asked []registry.Reference) []string {
	for _, ref := range asked {
		if slices.Contains(img.Tags, ref.String()) {
			return []string{ref.String()}
		}
	}
	return slices.Clone(img.Tags)
}

// Push uploads an image under a name, "" for the one that it was given by, and returns the digest of its manifest there, see
// package outgoing. report, if not nil, is told how far each layer is, from several goroutines. Its errors are those
// of pkg/imagesvc/registry, ErrNotFound, ErrInvalid and ErrNoSpace.
func (s *Service) Push(ctx context.Context, source, target string, auth registry.Auth, report func(LayerProgress)) (digest.Digest, error) {
	if target == "" {
		target = source
	}
	ref, err := s.settings.Load().Registry.Tagged(target, "pushed")
	if err != nil {
		return "", fmt.Errorf("push: %w: %w", ErrInvalid, err)
	}
	img, release, err := s.hold(ctx, source)
	if err != nil {
		return "", fmt.Errorf("push: %w", err)
	}
	defer release()
	d, err := s.push(ctx, img, ref, auth, report)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", ref, s.noSpace(ctx, invalid(err)))
	}
	return d, nil
}

func (s *Service) push(ctx context.Context, img Image, ref registry.Reference, auth registry.Auth, report func(LayerProgress)) (digest.Digest, error) {
	out, err := s.outgoing(img)
	if err != nil {
		return "", err
	}
	to, err := s.settings.Load().Registry.Pusher(ref, auth)
	if err != nil {
		return "", err
	}
	var from []string
	for _, name := range img.Digests {
		if known, err := registry.Parse(name); err == nil && known.Domain() == ref.Domain() && known.Path() != ref.Path() && !slices.Contains(from, known.Path()) {
			from = append(from, known.Path())
		}
	}
	return s.store().Push(ctx, out, to, from, report)
}
