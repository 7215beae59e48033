package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/verify"
)

// Import takes in the images of an archive, which is read once, and returns them. Those that are there in part use what is
// there. After an error the images before it have been taken in. ErrInvalid, ErrNoSpace.
func (s *Service) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Image, error) {
	var given *registry.Reference
	if o.Name != "" {
		ref, err := registry.Parse(o.Name)
		if err == nil && ref.Tag() == "" {
			err = errors.New("a tag is needed, the digest comes of what is imported")
		}
		if err != nil {
			return nil, fmt.Errorf("import: name %q: %w: %w", o.Name, ErrInvalid, err)
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
	if errors.Is(err, archive.ErrInvalid) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		return images, fmt.Errorf("import: %w", s.noSpace(ctx, err))
	}
	return images, nil
}

func (s *Service) importFrom(ctx context.Context, r io.Reader, dir string, given *registry.Reference) ([]Image, error) {
	from, err := archive.Read(ctx, r, dir, archive.Limits{Entries: maxArchiveEntries})
	if err != nil {
		return nil, err
	}
	list := from.Images()
	if given != nil && len(list) > 1 {
		return nil, fmt.Errorf("%w: the archive has %d images; a name can be given to one", ErrInvalid, len(list))
	}
	var out []Image
	for _, entry := range list {
		names, err := importNames(entry, given)
		if err != nil {
			return out, err
		}
		img, err := s.importImage(ctx, &archived{from, entry.Root.Digest}, names)
		if err != nil {
			return out, fmt.Errorf("image %s: %w", entry.Root.Digest, err)
		}
		out = append(out, img)
	}
	return out, nil
}

// imports is the directory of archives that are being imported.
func (s *Service) imports() string { return filepath.Join(s.config.Root, "imports") }

// maxArchiveEntries bounds the files of an archive: many images of many layers.
const maxArchiveEntries = 100_000

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

func (s *Service) importImage(ctx context.Context, from *archived, refs []registry.Reference) (img Image, err error) {
	label := from.root.String()
	if len(refs) > 0 {
		label = refs[0].String()
	}
	watched := s.progress.begin(label)
	defer func() { s.progress.end(watched, err) }()
	docs, err := document.Read(ctx, from)
	if err != nil {
		return img, err
	}
	release, err := s.lease(ctx, parts(docs))
	if err != nil {
		return img, err
	}
	defer release()
	if img, err = s.fetchImage(ctx, from, docs, watched); err != nil {
		return img, err
	}
	var names []name
	for _, ref := range refs {
		names = append(names, name{ref, docs.Resolved.Digest})
	}
	if err := s.put(ctx, img, names...); err != nil {
		return img, err
	}
	logrus.WithFields(logrus.Fields{"image": label, "id": img.ID}).Info("image is imported")
	return s.Resolve(img.ID.String())
}

// archived is the origin of an import.
type archived struct {
	*archive.Archive
	root digest.Digest
}

func (a *archived) Manifest(ctx context.Context, d digest.Digest) (registry.Manifest, error) {
	if d == "" {
		d = a.root
	}
	mediaType, data, err := a.Archive.Manifest(ctx, d)
	return registry.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, Data: data,
	}, err
}

func (a *archived) Content(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	blob, err := a.Layer(ctx, d)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

func (a *archived) Layer(ctx context.Context, d ocispec.Descriptor) (layerBlob, error) {
	f, _, err := a.Blob(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	return newFileBlob(f, d), nil
}

func (a *archived) CanTryElsewhere() bool { return false }

// fileBlob is a layer's blob that is a file.
type fileBlob struct {
	*verify.Reader
	file *os.File
	size int64
}

// newFileBlob takes over the file.
func newFileBlob(f *os.File, d ocispec.Descriptor) *fileBlob {
	return &fileBlob{verify.NewReader(f, d.Digest, d.Size), f, d.Size}
}

func (b *fileBlob) Fetched() int64 { return b.size }

func (b *fileBlob) Consumed() int64 { return b.Reader.Count() }

func (b *fileBlob) CopyTo(w io.Writer) (int64, error) {
	return io.Copy(w, io.NewSectionReader(b.file, 0, b.size))
}

func (b *fileBlob) Close() error   { return b.file.Close() }
func (b *fileBlob) Discard() error { return b.file.Close() }
