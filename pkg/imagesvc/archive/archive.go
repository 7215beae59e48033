// Package archive reads and writes archives of images: tars of an OCI image layout (image-spec, image-layout.md), what
// "docker save" writes, and tars that are both, as docker writes since version 25.
//
// Archives come from anywhere and may be hostile. They are read from a stream, once, from front to back; what they hold is
// kept in files named by digest, never by a name of the archive's choice. It says nothing about whether the images can be
// run: who uses a manifest checks what it names as if it came from a registry.
package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/mediatype"
	"criserver/pkg/imagesvc/verify"
)

var (
	// ErrInvalid: what is read is no archive of images, or a damaged one; what is to be written cannot be.
	ErrInvalid = errors.New("invalid image archive")
	// ErrNotFound: the archive does not hold this blob. Of the manifests of an index, archives often hold only one.
	ErrNotFound = errors.New("not in the archive")
)

// maxDocument bounds what is read into memory at once: indexes, manifests, configurations. Registries refuse manifests of
// more than 4 MiB.
const maxDocument = 4 << 20

// Limits are what an archive may cost. An archive beyond them is ErrInvalid.
type Limits struct {
	// Bytes is the size of the tar, uncompressed, and of all files in it: that much space its blobs can take.
	Bytes int64
	// Entries is the number of files, directories and links.
	Entries int
}

// Image is one image of an archive.
type Image struct {
	// Names are full references, normalised ("docker.io/library/busybox:latest"), none twice; none if the archive has none.
	Names []string
	// Tag is all that the archive says of the name of an image without Names: "latest". It may be empty too.
	Tag string
	// Root is the manifest or the index; Manifest reads it.
	Root ocispec.Descriptor
}

// Archive is an archive that was read. Its methods may be called at the same time, until the caller removes the directory.
type Archive struct {
	dir    string
	blobs  map[digest.Digest]int64 // sizes
	images []Image
}

// Images returns the images in the order of the archive, each manifest once; at least one.
func (a *Archive) Images() []Image {
	out := slices.Clone(a.images)
	for i := range out {
		out[i].Names = slices.Clone(out[i].Names)
	}
	return out
}

// Blob opens a blob, whose content has the digest. The caller closes it. ErrNotFound.
func (a *Archive) Blob(ctx context.Context, d digest.Digest) (*os.File, int64, error) {
	size, ok := a.blobs[d]
	if !ok {
		return nil, 0, fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, fmt.Errorf("open blob %s: %w", d, err)
	}
	f, err := os.Open(blobPath(a.dir, d))
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	return f, size, nil
}

// Manifest reads a manifest or an index, and says which of the media types of OCI or of Docker's schema 2 it has. ErrNotFound;
// ErrInvalid if it is something else.
func (a *Archive) Manifest(ctx context.Context, d digest.Digest) (mediaType string, data []byte, err error) {
	if data, err = a.document(ctx, d); err != nil {
		return "", nil, err
	}
	if mediaType, err = typeOf(data); err != nil {
		return "", nil, fmt.Errorf("blob %s: %w", d, err)
	}
	return mediaType, data, nil
}

// document reads a small blob.
func (a *Archive) document(ctx context.Context, d digest.Digest) ([]byte, error) {
	f, size, err := a.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("%w: document %s has %d bytes, at most %d are read", ErrInvalid, d, size, maxDocument)
	}
	data, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	return data, nil
}

// add keeps a document that the archive does not have as a file.
func (a *Archive) add(data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	if err := os.WriteFile(blobPath(a.dir, d), data, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("keep manifest: %w", err)
	}
	a.blobs[d] = int64(len(data))
	return d, nil
}

// blobPath is where a blob is kept. The digest has passed verify.CheckDigest, or was computed.
func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, d.Algorithm().String()+"-"+d.Encoded())
}

// typeOf tells manifests from indexes. OCI documents need not say what they are; what they have in them does.
func typeOf(data []byte) (string, error) {
	var doc struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return "", fmt.Errorf("decode manifest: %w: %w", ErrInvalid, err)
	}
	switch {
	case doc.Manifests != nil && doc.Layers != nil:
		// Readers that look at different fields would see different images.
		return "", fmt.Errorf("%w: it is a manifest and an index at once", ErrInvalid)
	case mediatype.IsManifest(doc.MediaType), mediatype.IsIndex(doc.MediaType):
		return doc.MediaType, nil
	case doc.MediaType != "":
		return "", fmt.Errorf("%w: media type %q is no image", ErrInvalid, doc.MediaType)
	case doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case doc.Layers != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("%w: it is neither the manifest nor the index of an image", ErrInvalid)
}

// checkDescriptor says why a descriptor cannot be used.
func checkDescriptor(d ocispec.Descriptor) error {
	if err := verify.CheckDigest(d.Digest); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("%w: blob %s has size %d", ErrInvalid, d.Digest, d.Size)
	}
	return nil
}
