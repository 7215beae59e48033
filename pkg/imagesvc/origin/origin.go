// Package origin is where images come from: a registry, an archive, or what is on the node already.
package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/failure"
	"criserver/pkg/imagesvc/sources"
	"criserver/pkg/imagesvc/verify"
)

// Origin is where an image comes from.
type Origin interface {
	document.Origin
	Layers
}

// Layers is where the layers of an image come from.
type Layers interface {
	// Layer opens the blob of a layer.
	Layer(ctx context.Context, d ocispec.Descriptor) (Blob, error)
	// CanTryElsewhere tells whether opening a layer again after damage may help.
	CanTryElsewhere() bool
}

// Blob is the blob of a layer while it arrives; see download.Blob.
type Blob interface {
	io.Reader
	Err() error
	Drain() error
	Fetched() int64
	Consumed() int64
	// CopyTo copies the blob, once it has been read to its end.
	CopyTo(w io.Writer) (int64, error)
	// Close ends the use of the blob and keeps what the next use of it can spare; Discard keeps nothing. Both may be called
	// again.
	Close() error
	Discard() error
}

// Copy copies a blob that has been read to its end, and is opened again if that takes it.
func Copy(ctx context.Context, w io.Writer, blob Blob, from Layers, d ocispec.Descriptor) (int64, error) {
	n, err := blob.CopyTo(w)
	if !errors.Is(err, download.ErrNotWritten) {
		return n, err
	}
	again, err := from.Layer(ctx, d)
	if err != nil {
		return 0, err
	}
	defer again.Discard() //nolint:errcheck // it has nothing on the disk
	n, err = io.Copy(w, struct{ io.Reader }{again})
	if damage := again.Err(); err != nil && damage != nil && !errors.Is(damage, io.EOF) {
		err = damage // which blames who sent it
	}
	return n, err
}

// Remote is an image of a registry.
type Remote struct {
	*registry.Repository
	Downloads *download.Store
}

// Content implements document.Origin.
func (r *Remote) Content(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if len(d.Data) > 0 && int64(len(d.Data)) == d.Size && d.Digest.Algorithm().FromBytes(d.Data) == d.Digest {
		return d.Data, nil // image-spec, descriptor.md: embedded content
	}
	for {
		data, several, err := read(ctx, r.Repository, d)
		if err == nil || !failure.IsDamage(failure.KindOf(err)) || ctx.Err() != nil {
			return data, err
		}
		if several && errors.Is(err, registry.ErrDigest) {
			return r.contentAlone(ctx, d, err)
		}
		if !r.CanTryElsewhere() {
			return nil, err
		}
	}
}

// contentAlone is Content from one endpoint after the other, because what several sent together is wrong.
func (r *Remote) contentAlone(ctx context.Context, d ocispec.Descriptor, wrong error) ([]byte, error) {
	var texts []string // an error is of one kind
	for _, alone := range r.Repository.Alone() {
		data, _, err := read(ctx, alone, d)
		if err == nil || ctx.Err() != nil {
			return data, err
		}
		texts = append(texts, err.Error())
	}
	return nil, fmt.Errorf("%w; alone: %s", wrong, strings.Join(texts, "; "))
}

// read reads a blob. several tells whether more than one endpoint sent it.
func read(ctx context.Context, from *registry.Repository, d ocispec.Descriptor) (data []byte, several bool, err error) {
	blob, err := from.Blob(ctx, d)
	if err != nil {
		return nil, false, err
	}
	defer blob.Close()
	data, err = io.ReadAll(blob)
	return data, blob.Several(), err
}

// Layer implements Origin.
func (r *Remote) Layer(ctx context.Context, d ocispec.Descriptor) (Blob, error) {
	return r.Downloads.Open(ctx, d, func(ctx context.Context, offset, length int64) (download.Part, error) {
		return r.Part(ctx, d, offset, length)
	})
}

// Part implements sources.Source.
func (r *Remote) Part(ctx context.Context, d ocispec.Descriptor, offset, length int64) (download.Part, error) {
	return r.Range(ctx, d, offset, length)
}

// Alone implements sources.Source.
func (r *Remote) Alone() []sources.Server {
	var all []sources.Server
	for _, one := range r.Repository.Alone() {
		all = append(all, sources.Server{Source: &Remote{one, r.Downloads}, Name: one.Server()})
	}
	return all
}

// Site implements sources.Source.
func (r *Remote) Site() string { return r.Reference().Domain() }

// Archived is an image of an archive.
type Archived struct {
	*archive.Archive
	Root digest.Digest
}

// Manifest implements document.Origin.
func (a *Archived) Manifest(ctx context.Context, d digest.Digest) (registry.Manifest, error) {
	if d == "" {
		d = a.Root
	}
	mediaType, data, err := a.Archive.Manifest(ctx, d)
	return registry.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, Data: data,
	}, err
}

// Content implements document.Origin.
func (a *Archived) Content(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	blob, err := a.Layer(ctx, d)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

// Layer implements Origin.
func (a *Archived) Layer(ctx context.Context, d ocispec.Descriptor) (Blob, error) {
	f, _, err := a.Blob(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	return NewFile(f, d), nil
}

// CanTryElsewhere implements Origin.
func (a *Archived) CanTryElsewhere() bool { return false }

// Local is an image that is made on the node, or has been.
type Local struct {
	Document registry.Manifest
	Config   []byte
	// Open opens the blob of a layer; it is verified here.
	Open func(d ocispec.Descriptor) (*os.File, error)
}

// Manifest implements document.Origin.
func (l *Local) Manifest(context.Context, digest.Digest) (registry.Manifest, error) {
	return l.Document, nil
}

// Content implements document.Origin.
func (l *Local) Content(context.Context, ocispec.Descriptor) ([]byte, error) { return l.Config, nil }

// Layer implements Origin.
func (l *Local) Layer(_ context.Context, d ocispec.Descriptor) (Blob, error) {
	f, err := l.Open(d)
	if err != nil {
		return nil, err
	}
	return NewFile(f, d), nil
}

// CanTryElsewhere implements Origin.
func (l *Local) CanTryElsewhere() bool { return false }

// File is a layer's blob that is a file.
type File struct {
	*verify.Reader
	file *os.File
	size int64
}

// NewFile takes over the file.
func NewFile(f *os.File, d ocispec.Descriptor) *File {
	return &File{verify.NewReader(f, d.Digest, d.Size), f, d.Size}
}

// Fetched implements Blob.
func (f *File) Fetched() int64 { return f.size }

// Consumed implements Blob.
func (f *File) Consumed() int64 { return f.Count() }

// CopyTo implements Blob.
func (f *File) CopyTo(w io.Writer) (int64, error) {
	return io.Copy(w, io.NewSectionReader(f.file, 0, f.size))
}

// Close implements Blob. It may be called again.
func (f *File) Close() error {
	if err := f.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Discard implements Blob.
func (f *File) Discard() error { return f.Close() }
