package imagesvc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/imagesvc/verify"
)

// held is an image whose parts stay on the disk until release is called.
type held struct {
	Image
	release func()
	// manifest is the content of manifestData.
	manifest                 ocispec.Manifest
	manifestData, configData []byte
}

// hold finds an image and keeps its parts from removal. ErrNotFound.
func (s *Service) hold(ctx context.Context, name string) (*held, error) {
	img, err := s.Resolve(name)
	if err != nil {
		return nil, err
	}
	release, err := s.lease(ctx, slices.Concat([]digest.Digest{img.ConfigBlob, img.Manifest}, img.DiffIDs, img.Blobs))
	if err != nil {
		return nil, err
	}
	h := &held{release: release}
	// Again, under the lease: a removal may have come between.
	if h.Image, err = s.Resolve(img.ID.String()); err != nil {
		release()
		return nil, err
	}
	return h, nil
}

// read reads the documents of the image.
func (h *held) read(s *Service) (err error) {
	if h.manifestData, err = s.content.Read(h.Manifest); err != nil {
		return fmt.Errorf("image %s: manifest %w; run \"criserver image check --repair\"", h.ID, err)
	}
	if h.configData, err = s.content.Read(h.ConfigBlob); err != nil {
		return fmt.Errorf("image %s: configuration %w; run \"criserver image check --repair\"", h.ID, err)
	}
	if err := json.Unmarshal(h.manifestData, &h.manifest); err != nil {
		return fmt.Errorf("decode manifest %s: %w", h.Manifest, err)
	}
	if len(h.manifest.Layers) != len(h.DiffIDs) {
		return fmt.Errorf("image %s: %w: its manifest has %d layers, its record %d", h.ID, ErrInvalid, len(h.manifest.Layers), len(h.DiffIDs))
	}
	return nil
}

// giving is a layer to be given on.
type giving struct {
	desc ocispec.Descriptor
	open func(ctx context.Context) (io.ReadCloser, error)
	// exact says that it is the blob that the manifest names.
	exact bool
}

// layer returns a layer of the image as it came, if that can be had, or else as a plain tar.
func (s *Service) giving(ctx context.Context, h *held, i int) (giving, error) {
	desc := h.manifest.Layers[i]
	if slices.Contains(h.Blobs, desc.Digest) {
		return giving{desc, func(context.Context) (io.ReadCloser, error) { return s.openBlob(desc) }, true}, nil
	}
	tree, err := s.tree(ctx, h.DiffIDs[i])
	if err != nil {
		return giving{}, err
	}
	if h.Artifact {
		return giving{desc, func(context.Context) (io.ReadCloser, error) { return tree.openFile(desc) }, true}, nil
	}
	size, err := tree.tarSize()
	if err != nil {
		return giving{}, err
	}
	plain := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: h.DiffIDs[i], Size: size, Annotations: desc.Annotations}
	return giving{plain, func(context.Context) (io.ReadCloser, error) { return tree.openTar() }, plain.Digest == desc.Digest}, nil
}

// plainly is giving, but never a compressed layer.
func (s *Service) plainly(ctx context.Context, h *held, i int) (giving, error) {
	g, err := s.giving(ctx, h, i)
	if err != nil || g.desc.Digest == h.DiffIDs[i] {
		return g, err
	}
	if tree, err := s.tree(ctx, h.DiffIDs[i]); err == nil {
		if size, err := tree.tarSize(); err == nil {
			g.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: h.DiffIDs[i], Size: size}
			g.open = func(context.Context) (io.ReadCloser, error) { return tree.openTar() }
			return g, nil
		}
	}
	// A tar that cannot be written again is in the kept blob.
	compressed := g
	g.open = func(ctx context.Context) (io.ReadCloser, error) {
		blob, err := compressed.open(ctx)
		if err != nil {
			return nil, err
		}
		plain, err := unpack.Decompress(compressed.desc.MediaType, blob)
		if err != nil {
			blob.Close()
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{verify.NewReader(plain, h.DiffIDs[i], verify.Unknown), closers{plain, blob}}, nil
	}
	g.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: h.DiffIDs[i]}
	r, err := g.open(ctx)
	if err != nil {
		return g, err
	}
	defer r.Close()
	g.desc.Size, err = io.Copy(io.Discard, r)
	return g, err
}

// openBlob opens a kept layer; it is verified while it is read.
func (s *Service) openBlob(desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, _, err := s.content.Open(desc.Digest)
	if err != nil {
		return nil, err
	}
	return verified(f, desc), nil
}

// openFile opens the file that a layer of an artifact is.
func (t layerTree) openFile(desc ocispec.Descriptor) (io.ReadCloser, error) {
	var found string
	err := filepath.WalkDir(t.dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			found = path
		}
		return err
	})
	if err == nil && found == "" {
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("file of artifact layer %s: %w", t.id, err)
	}
	f, err := os.Open(found)
	if err != nil {
		return nil, err
	}
	return verified(f, desc), nil
}

func verified(f *os.File, desc ocispec.Descriptor) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{verify.NewReader(f, desc.Digest, desc.Size), f}
}

// closers are closed in order; the first error counts.
type closers []io.Closer

func (c closers) Close() error {
	var first error
	for _, one := range c {
		if err := one.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}
