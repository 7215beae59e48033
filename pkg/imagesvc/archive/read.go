package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/ctxreader"
)

// Read takes an archive in from a stream, to its end, and keeps its blobs in dir, an empty directory that the caller made and
// removes, also after an error. The stream may be compressed by gzip or zstd. Every file that stands for a digest has it when
// Read returns. ErrInvalid says what is wrong with the archive; errors of the stream and of the disk are none of that kind.
func Read(ctx context.Context, r io.Reader, dir string, limits Limits) (*Archive, error) {
	in, err := newStream(&input{r: ctxreader.New(ctx, r)}, limits.Bytes)
	if err != nil {
		return nil, err
	}
	defer in.plain.Close()
	s := newSpool(dir, limits)
	if err := s.readAll(in); err != nil {
		return nil, err
	}
	a := &Archive{dir: dir, blobs: s.blobs}
	if err := a.findImages(ctx, s); err != nil {
		return nil, err
	}
	return a, nil
}

// findImages reads the tables of contents. That of OCI counts more: it has the manifests as they were pushed. Docker's adds
// what only it has.
func (a *Archive) findImages(ctx context.Context, s *spool) error {
	_, isOCI := s.docs[ocispec.ImageLayoutFile]
	items, isDocker := s.docs[manifestFile]
	if !isOCI && !isDocker {
		return s.noArchive()
	}
	t := newTable()
	if isOCI {
		if err := a.readLayout(ctx, s, t); err != nil {
			return err
		}
	}
	if isDocker {
		if err := a.readDocker(ctx, s, t, items); err != nil {
			return err
		}
	}
	a.images = t.images
	if len(a.images) == 0 {
		return fmt.Errorf("%w: it names no image", ErrInvalid)
	}
	return nil
}

// noArchive says what was expected, and of the likely mistake how to mend it.
func (s *spool) noArchive() error {
	const want = "a tar of an OCI layout has the files oci-layout and index.json, one of \"docker save\" has manifest.json"
	for file := range s.files {
		if dir, base := path.Split(file); base == ocispec.ImageLayoutFile {
			return fmt.Errorf("%w: it has an image layout in its directory %q, not at its top: make it with \"tar -C %s -cf FILE .\"",
				ErrInvalid, dir, dir)
		}
	}
	if _, ok := s.files["repositories"]; ok {
		return fmt.Errorf("%w: it was written by a docker before 1.10, without manifest.json; load and save it with a newer one", ErrInvalid)
	}
	return fmt.Errorf("%w: it is a tar of something else: %s", ErrInvalid, want)
}

// table collects the images. Of a hostile archive's many entries each costs no more than the first.
type table struct {
	images []Image
	at     map[digest.Digest]int
	names  map[name]bool
}

// name is one of an image.
type name struct {
	image int
	full  string
}

func newTable() *table { return &table{at: map[digest.Digest]int{}, names: map[name]bool{}} }

// include adds an image, or names to the image that it is.
func (t *table) include(root ocispec.Descriptor, names []string, tag string) {
	i, ok := t.at[root.Digest]
	if !ok {
		i = len(t.images)
		t.at[root.Digest] = i
		t.images = append(t.images, Image{Root: root})
	}
	img := &t.images[i]
	for _, full := range names {
		if n := (name{i, full}); !t.names[n] {
			t.names[n] = true
			img.Names = append(img.Names, full)
		}
	}
	if img.Tag == "" {
		img.Tag = tag
	}
	if len(img.Names) > 0 {
		img.Tag = ""
	}
}

// isMissing: the archive does not hold it, which may be all right.
func isMissing(err error) bool { return errors.Is(err, ErrNotFound) }
