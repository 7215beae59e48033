package imagesvc

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/catalog"
	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/restore"
)

// Import takes in the images of an archive, which is read once, and returns them. Those that are there in part use what is
// there. After an error the images before it have been taken in. ErrInvalid, ErrNoSpace.
func (s *Service) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Image, error) {
	var given *registry.Reference
	if o.Name != "" {
		ref, err := s.settings.Load().Registry.Tagged(o.Name, "imported")
		if err != nil {
			return nil, fmt.Errorf("import: %w: %w", ErrInvalid, err)
		}
		given = &ref
	}
	dir, err := os.MkdirTemp(s.imports(), "")
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			logrus.WithError(err).Warn("an imported archive stays on disk until the next start")
		}
	}()
	images, err := s.importFrom(ctx, r, dir, given)
	if err != nil {
		return images, fmt.Errorf("import: %w", s.noSpace(ctx, invalid(err)))
	}
	return images, nil
}

func (s *Service) importFrom(ctx context.Context, r io.Reader, dir string, given *registry.Reference) ([]Image, error) {
	from, err := archive.Read(ctx, r, dir, archive.Limits{Bytes: maxArchive, Entries: maxArchiveEntries})
	if err != nil {
		return nil, err
	}
	list := archive.ForThisMachine(from.Images())
	if given != nil && len(list) > 1 {
		return nil, fmt.Errorf("%w: the archive has %d images; a name can be given to one", ErrInvalid, len(list))
	}
	var out []Image
	for _, entry := range list {
		names, err := importNames(entry, given)
		if err != nil {
			return out, err
		}
		img, err := s.importImage(ctx, &origin.Archived{Archive: from, Root: entry.Root.Digest}, names)
		if err != nil {
			return out, fmt.Errorf("image %s: %w", entry.Root.Digest, err)
		}
		out = append(out, img)
	}
	return out, nil
}

// imports is the directory of archives that are being imported.
func (s *Service) imports() string { return filepath.Join(s.config.Root, "imports") }

// Limits of an archive: many images of many layers. That the disk is too small for it, the disk says.
const maxArchive, maxArchiveEntries = 1 << 44, 100_000

// importNames are the names that an image of an archive gets.
func importNames(entry archive.Image, given *registry.Reference) ([]registry.Reference, error) {
	if given != nil {
		return []registry.Reference{*given}, nil
	}
	var out []registry.Reference
	for _, name := range entry.Names {
		ref, err := registry.Parse(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		out = append(out, ref)
	}
	return out, nil
}

func (s *Service) importImage(ctx context.Context, from *origin.Archived, refs []registry.Reference) (img Image, err error) {
	label := from.Root.String()
	if len(refs) > 0 {
		label = refs[0].String()
	}
	watched := s.progress.Begin(label)
	defer func() { watched.End(err); s.cleaner.WakeAfter(err) }()
	docs, err := document.Read(ctx, from)
	if err != nil {
		return img, err
	}
	var names []catalog.Name
	for _, ref := range refs {
		names = append(names, catalog.Name{Ref: ref, Resolved: docs.Resolved.Digest})
	}
	// One that is there keeps the manifest that it came with.
	if known, release, err := s.hold(ctx, docs.ID().String()); err == nil {
		defer release()
		img = known
	} else {
		release, err := s.leases.Hold(ctx, restore.Parts(docs))
		if err != nil {
			return img, err
		}
		defer release()
		if img, err = s.fetchImage(ctx, from, docs, watched); err != nil {
			return img, err
		}
	}
	if err := s.put(ctx, img, names...); err != nil {
		return img, err
	}
	logrus.WithFields(logrus.Fields{"image": label, "id": img.ID}).Info("image is imported")
	return s.Resolve(img.ID.String())
}
