package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"criserver/pkg/imagesvc/registry"
)

// Push uploads an image under a name, "" for the one that it was given by, and returns the digest of its manifest there. The
// registry gets the manifest and layers that the image was pulled with, if it has them already or they are kept here
// (Config.KeepBlobs). Otherwise layers are compressed anew: the image ID stays the same, the manifest is another one.
// report, if not nil, is told how far each layer is, from several goroutines. Its errors are those of
// pkg/imagesvc/registry, ErrNotFound, ErrInvalid and ErrNoSpace.
func (s *Service) Push(ctx context.Context, source, target string, auth registry.Auth, report func(LayerProgress)) (digest.Digest, error) {
	if target == "" {
		target = source
	}
	ref, err := registry.Parse(target)
	if err != nil {
		return "", fmt.Errorf("push: %w: %w", ErrInvalid, err)
	}
	if ref.Tag() == "" {
		return "", fmt.Errorf("push %s: %w: a tag is needed, the digest comes of what is pushed", target, ErrInvalid)
	}
	h, err := s.hold(ctx, source)
	if err != nil {
		return "", fmt.Errorf("push: %w", err)
	}
	defer h.release()
	d, err := s.push(ctx, h, ref, auth, report)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", ref, s.noSpace(ctx, err))
	}
	return d, nil
}

func (s *Service) push(ctx context.Context, h *held, ref registry.Reference, auth registry.Auth, report func(LayerProgress)) (digest.Digest, error) {
	if err := h.read(s); err != nil {
		return "", err
	}
	to, err := s.registry.Pusher(ref, auth)
	if err != nil {
		return "", err
	}
	p := &pushing{s: s, h: h, to: to, from: h.repositories(ref.Domain()), report: report}
	layers, err := p.exactly(ctx)
	if err == nil && layers == nil {
		layers, err = p.anew(ctx)
	}
	if err != nil {
		return "", err
	}
	data, desc, config := h.manifestFor(layers)
	if _, err := to.PushBlob(ctx, config, strings.NewReader(string(h.configData)), registry.BlobOptions{From: p.from}); err != nil {
		return "", err
	}
	return to.Manifest(ctx, ref.Tag(), desc.MediaType, data)
}

// repositories are those of a registry that the image is known by, without the registry's name.
func (h *held) repositories(domain string) []string {
	var out []string
	for _, name := range h.Digests {
		if ref, err := registry.Parse(name); err == nil && ref.Domain() == domain {
			out = insert(out, ref.Path())
		}
	}
	return out
}

// pushing is a push under way.
type pushing struct {
	s      *Service
	h      *held
	to     *registry.Pusher
	from   []string
	report func(LayerProgress)
}

func (p *pushing) tell(desc ocispec.Descriptor, state LayerState, sent int64) {
	if p.report != nil {
		p.report(LayerProgress{Digest: desc.Digest, State: state, Size: desc.Size, Fetched: sent, Unpacked: sent})
	}
}

// exactly brings the layers that the manifest names into the repository. It returns none if one of them cannot be had.
func (p *pushing) exactly(ctx context.Context) ([]giving, error) {
	layers := make([]giving, len(p.h.DiffIDs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, p.s.config.ParallelLayers))
	for i, desc := range p.h.manifest.Layers {
		group.Go(func() error {
			g, err := p.s.giving(ctx, p.h, i)
			if err == nil && g.exact {
				layers[i] = g
				return p.upload(ctx, g)
			}
			there, err := p.to.Mount(ctx, desc, p.from)
			if err != nil {
				return err
			}
			if !there {
				return errNotThere
			}
			layers[i] = giving{desc: desc, exact: true}
			p.tell(desc, LayerExists, desc.Size)
			return nil
		})
	}
	err := group.Wait()
	if errors.Is(err, errNotThere) {
		return nil, nil
	}
	return layers, err
}

// errNotThere: a layer is neither kept here nor in the registry.
var errNotThere = errors.New("layer is not there")

// anew compresses the layers and uploads them.
func (p *pushing) anew(ctx context.Context) ([]giving, error) {
	layers := make([]giving, len(p.h.DiffIDs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, p.s.config.ParallelLayers))
	for i := range p.h.DiffIDs {
		group.Go(func() error {
			g, err := p.s.giving(ctx, p.h, i)
			if err != nil {
				return err
			}
			if g.desc.MediaType != ocispec.MediaTypeImageLayer {
				layers[i] = g
				return p.upload(ctx, g)
			}
			f, err := p.compress(ctx, g)
			if err != nil {
				return err
			}
			defer f.Close()
			layers[i] = f.giving
			return p.uploadFrom(ctx, f.desc, f.File)
		})
	}
	return layers, group.Wait()
}

// compressed is a temporary file without a name.
type compressed struct {
	giving
	*os.File
}

func (p *pushing) compress(ctx context.Context, g giving) (*compressed, error) {
	plain, err := g.open(ctx)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	f, err := p.s.tempFile()
	if err != nil {
		return nil, err
	}
	hash := digest.Canonical.Digester()
	var size int64
	zw := gzip.NewWriter(io.MultiWriter(f, hash.Hash(), (*byteCounter)(&size)))
	_, err = io.Copy(zw, contextReader{ctx, plain})
	if err = errors.Join(err, zw.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("compress layer %s: %w", g.desc.Digest, err), f.Close())
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: hash.Digest(), Size: size, Annotations: g.desc.Annotations}
	return &compressed{giving{desc: desc}, f}, nil
}

// upload sends a layer that is a file.
func (p *pushing) upload(ctx context.Context, g giving) error {
	r, err := g.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := p.s.tempFile()
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, contextReader{ctx, r}); err != nil { // verified on the way
		return fmt.Errorf("read layer %s: %w", g.desc.Digest, err)
	}
	return p.uploadFrom(ctx, g.desc, f)
}

func (p *pushing) uploadFrom(ctx context.Context, desc ocispec.Descriptor, content io.ReaderAt) error {
	p.tell(desc, LayerFetching, 0)
	how, err := p.to.PushBlob(ctx, desc, content, registry.BlobOptions{
		From: p.from, Progress: func(sent int64) { p.tell(desc, LayerFetching, sent) },
	})
	if err != nil {
		return err
	}
	state := LayerDone
	if how != registry.PushUploaded {
		state = LayerExists
	}
	p.tell(desc, state, desc.Size)
	return nil
}

// tempFile makes a file without a name on the image file system: it is gone when it is closed, however this process ends.
func (s *Service) tempFile() (*os.File, error) {
	f, err := os.OpenFile(s.config.Root, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make temporary file: %w", err)
	}
	return f, nil
}

// contextReader ends reading, between two reads, with the context's error.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
