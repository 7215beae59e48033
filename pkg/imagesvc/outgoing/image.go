// Package outgoing gives images on, to archives and registries: with the layers as they came, where those are kept, and
// otherwise with tars that are written again from what was unpacked. The image ID stays the same in any case; with other
// layers than the manifest names the manifest is another one.
package outgoing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"criserver/pkg/ctxreader"
	"criserver/pkg/imagesvc/content"
	"criserver/pkg/imagesvc/layertar"
	"criserver/pkg/imagesvc/mediatype"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/imagesvc/verify"
	"criserver/pkg/snapshot"
)

// ErrInvalid says that what is asked for cannot be.
var ErrInvalid = errors.New("invalid")

// Store is where the parts of images are.
type Store struct {
	Content *content.Store
	// Trees are the unpacked layers; nil if the driver has none.
	Trees snapshot.Trees
	// Dir is a directory for temporary files, which have no names.
	Dir string
	// Parallel is how many layers are uploaded at the same time, at least 1.
	Parallel int
}

// Image is an image whose parts the caller keeps from removal.
type Image struct {
	ID digest.Digest
	// Manifest describes ManifestData.
	Manifest                 ocispec.Descriptor
	ManifestData, ConfigData []byte
	// Layers are the diffIDs, Kept the blobs of layers that are in the content store.
	Layers, Kept []digest.Digest
	// Artifact tells that the layers are files.
	Artifact bool

	parsed ocispec.Manifest
}

// parse reads the manifest.
func (img *Image) parse() error {
	if err := json.Unmarshal(img.ManifestData, &img.parsed); err != nil {
		return fmt.Errorf("decode manifest %s: %w", img.Manifest.Digest, err)
	}
	if len(img.parsed.Layers) != len(img.Layers) {
		return fmt.Errorf("%w: the manifest has %d layers, the image %d", ErrInvalid, len(img.parsed.Layers), len(img.Layers))
	}
	return nil
}

// layer is a layer to be given on.
type layer struct {
	desc ocispec.Descriptor
	// open returns the content, which is verified while it is read.
	open func(ctx context.Context) (io.ReadCloser, error)
	// exact says that it is the blob that the manifest names.
	exact bool
}

// layer returns a layer as it came, if that can be had, or else as a plain tar.
func (s *Store) layer(ctx context.Context, img *Image, i int) (layer, error) {
	desc := img.parsed.Layers[i]
	if slices.Contains(img.Kept, desc.Digest) {
		return layer{desc, func(context.Context) (io.ReadCloser, error) { return s.blob(desc) }, true}, nil
	}
	tree, err := s.Tree(ctx, img.Layers[i])
	if err != nil {
		return layer{}, err
	}
	if img.Artifact {
		return layer{desc, func(context.Context) (io.ReadCloser, error) { return file(tree, desc) }, true}, nil
	}
	l, err := rebuilt(tree)
	l.desc.Annotations = desc.Annotations
	l.exact = l.desc.Digest == desc.Digest
	return l, err
}

// rebuilt is a layer whose tar is written again.
func rebuilt(tree layertar.Layer) (layer, error) {
	size, err := tree.Size()
	if err != nil {
		return layer{}, err
	}
	return layer{plainly(tree.ID, size), func(context.Context) (io.ReadCloser, error) { return tree.Open() }, false}, nil
}

func plainly(id digest.Digest, size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: id, Size: size}
}

// plain returns a layer as a plain tar.
func (s *Store) plain(ctx context.Context, img *Image, i int) (layer, error) {
	l, err := s.layer(ctx, img, i)
	if err != nil || l.desc.Digest == img.Layers[i] {
		return l, err
	}
	if tree, err := s.Tree(ctx, img.Layers[i]); err == nil {
		if l, err := rebuilt(tree); err == nil {
			return l, nil
		}
	}
	// A tar that cannot be written again is in the kept blob.
	out := layer{desc: plainly(img.Layers[i], 0), open: func(ctx context.Context) (io.ReadCloser, error) {
		return decompressed(ctx, l, img.Layers[i])
	}}
	r, err := out.open(ctx)
	if err != nil {
		return out, err
	}
	defer r.Close()
	out.desc.Size, err = io.Copy(io.Discard, r)
	return out, err
}

func decompressed(ctx context.Context, l layer, id digest.Digest) (io.ReadCloser, error) {
	blob, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	plain, err := unpack.Decompress(ctx, l.desc.MediaType, blob, unpack.Limits{Window: unpack.MaxWindow}) // as pulling it was allowed
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	return readCloser{verify.NewReader(plain, id, verify.Unknown), func() error {
		return errors.Join(plain.Close(), blob.Close())
	}}, nil
}

type readCloser struct {
	io.Reader
	close func() error
}

func (r readCloser) Close() error { return r.close() }

// Tree finds an unpacked layer. The caller keeps it from removal.
func (s *Store) Tree(ctx context.Context, id digest.Digest) (layertar.Layer, error) {
	if s.Trees == nil {
		return layertar.Layer{}, fmt.Errorf("layer %s: %w", id, layertar.ErrNone)
	}
	dir, meta, err := s.Trees.Tree(ctx, id)
	return layertar.Layer{ID: id, Dir: dir, File: meta}, err
}

// Lost tells whether a layer that is there cannot be given on: neither can its tar be written again nor is its blob kept, as that
// of an image that was removed.
func (s *Store) Lost(ctx context.Context, id, blob digest.Digest) bool {
	if s.Trees == nil || s.Content.Has(blob) {
		return false
	}
	tree, err := s.Tree(ctx, id)
	if err == nil {
		_, err = tree.Size()
	}
	return errors.Is(err, layertar.ErrNone)
}

// blob opens a kept layer.
func (s *Store) blob(desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, _, err := s.Content.Open(desc.Digest)
	if err != nil {
		return nil, err
	}
	return readCloser{verify.NewReader(f, desc.Digest, desc.Size), f.Close}, nil
}

// file opens the file that a layer of an artifact is.
func file(tree layertar.Layer, desc ocispec.Descriptor) (io.ReadCloser, error) {
	var found string
	err := filepath.WalkDir(tree.Dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			found = path
		}
		return err
	})
	if err == nil && found == "" {
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("find the file of layer %s: %w", tree.ID, err)
	}
	f, err := os.Open(found)
	if err != nil {
		return nil, fmt.Errorf("open the file of layer %s: %w", tree.ID, err)
	}
	return readCloser{verify.NewReader(f, desc.Digest, desc.Size), f.Close}, nil
}

// CheckFile tells what is wrong with the file that a layer of an artifact is, "" for nothing.
func CheckFile(ctx context.Context, tree layertar.Layer, desc ocispec.Descriptor) (string, error) {
	f, err := file(tree, desc)
	if errors.Is(err, os.ErrNotExist) {
		return "its file is missing", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, ctxreader.New(ctx, f))
	if errors.Is(err, verify.ErrDigest) || errors.Is(err, verify.ErrTruncated) {
		return "its file is not as it came: " + err.Error(), nil
	}
	return "", err
}

// manifestFor is the image's manifest if the layers are those that it names, or else one for those layers.
func (img *Image) manifestFor(layers []layer) (ocispec.Descriptor, []byte, error) {
	if !slices.ContainsFunc(layers, func(l layer) bool { return !l.exact }) {
		return img.Manifest, img.ManifestData, nil
	}
	m := img.parsed
	m.SchemaVersion, m.MediaType, m.Config.MediaType = 2, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
	m.Layers = make([]ocispec.Descriptor, len(layers))
	for i, l := range layers {
		m.Layers[i] = l.desc
		m.Layers[i].MediaType = mediatype.OCILayer(l.desc.MediaType)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("encode manifest: %w", err)
	}
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, data, nil
}

// TempFile makes a file without a name in a directory: it is gone when it is closed, however this process ends.
func TempFile(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make temporary file: %w", err)
	}
	return f, nil
}

// TempBlob is TempFile with what write writes, which it describes, but for the media type.
func TempBlob(dir string, write func(io.Writer) error) (*os.File, ocispec.Descriptor, error) {
	f, err := TempFile(dir)
	if err != nil {
		return nil, ocispec.Descriptor{}, err
	}
	hash := digest.Canonical.Digester()
	err = write(io.MultiWriter(f, hash.Hash()))
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekCurrent)
	}
	if err != nil {
		return nil, ocispec.Descriptor{}, errors.Join(err, f.Close())
	}
	return f, ocispec.Descriptor{Digest: hash.Digest(), Size: size}, nil
}
