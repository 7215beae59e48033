package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/catalog"
	"criserver/pkg/imagesvc/change"
	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/layertar"
	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/outgoing"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/restore"
	"criserver/pkg/snapshot"
)

// Commit makes an image of what a container has written: one more layer on those of its image, and the configuration with
// the changes. The container should not write meanwhile; a file that does change is an error that names it. The image
// of the container must still be there. ErrNotFound, ErrInvalid, ErrNoSpace.
func (s *Service) Commit(ctx context.Context, o CommitOptions) (Image, error) {
	ref, err := s.settings.Load().Registry.Tagged(o.Name, "committed")
	if err != nil {
		return Image{}, fmt.Errorf("commit: %w: %w", ErrInvalid, err)
	}
	img, err := s.commit(ctx, ref, o)
	if err != nil {
		return Image{}, fmt.Errorf("commit to %s: %w", ref, s.noSpace(ctx, invalid(err)))
	}
	logrus.WithFields(logrus.Fields{"image": ref.String(), "id": img.ID, "container": o.Snapshot}).Info("container is committed")
	return img, nil
}

func (s *Service) commit(ctx context.Context, ref registry.Reference, o CommitOptions) (Image, error) {
	base, release, err := s.hold(ctx, o.Base.String())
	if err != nil {
		return Image{}, fmt.Errorf("the container's image: %w; pull it again", err)
	}
	defer release()
	manifest, err := s.content.Read(base.Manifest)
	if err != nil {
		return Image{}, fmt.Errorf("manifest of image %s: %w", base.ID, err)
	}
	layer, err := s.writableLayer(ctx, o.Snapshot)
	if err != nil {
		return Image{}, err
	}
	defer layer.file.Close()
	if base.Artifact {
		return Image{}, fmt.Errorf("%w: %s is an artifact", ErrInvalid, base.ID)
	}
	made, err := change.Commit(base.Config, manifest, layer.desc, change.Options{Author: o.Author, Comment: o.Comment, Changes: o.Changes})
	if err != nil {
		return Image{}, err
	}
	from := &origin.Local{Document: made.Manifest, Config: made.Config, Open: layer.open}
	docs, err := document.Read(ctx, from)
	if err != nil {
		return Image{}, err
	}
	release, err = s.leases.Hold(ctx, restore.Parts(docs))
	if err != nil {
		return Image{}, err
	}
	defer release()
	watched := s.progress.Begin(ref.String())
	img, err := s.fetchImage(ctx, from, docs, watched)
	watched.End(err)
	if err != nil {
		return Image{}, err
	}
	if err := s.put(ctx, img, catalog.Name{Ref: ref, Resolved: docs.Resolved.Digest}); err != nil {
		return Image{}, err
	}
	return s.Resolve(img.ID.String())
}

// newLayer is the tar of a writable layer.
type newLayer struct {
	file *os.File
	desc ocispec.Descriptor
}

// WriteLayer writes the tar of what is in the writable layer of a snapshot. Who writes into it must not meanwhile. ErrNotFound.
func (s *Service) WriteLayer(ctx context.Context, key string, w io.Writer) error {
	driver, ok := s.layers.(snapshot.Changer)
	if !ok {
		return errors.New("the storage driver cannot give the writable layer of a container")
	}
	err := driver.Changes(ctx, key, func(dir string) error { return layertar.Changes(ctx, dir, w) })
	if errors.Is(err, snapshot.ErrNotFound) {
		return fmt.Errorf("%w: container %s has no writable layer", ErrNotFound, key)
	}
	return err
}

// writableLayer writes the tar of a container's writable layer into a file without a name.
func (s *Service) writableLayer(ctx context.Context, key string) (*newLayer, error) {
	f, desc, err := outgoing.TempBlob(s.config.Root, func(w io.Writer) error { return s.WriteLayer(ctx, key, w) })
	if err != nil {
		return nil, fmt.Errorf("read writable layer: %w", err)
	}
	desc.MediaType = ocispec.MediaTypeImageLayer
	return &newLayer{f, desc}, nil
}

// open opens a file of its own: the layer may be asked for more than once.
func (l *newLayer) open(d ocispec.Descriptor) (*os.File, error) {
	if d.Digest != l.desc.Digest {
		return nil, fmt.Errorf("layer %s of the container's image is gone: %w; pull the image again", d.Digest, ErrNotFound)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", l.file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open layer: %w", err)
	}
	return f, nil
}
