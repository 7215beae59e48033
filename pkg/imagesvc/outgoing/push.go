package outgoing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"criserver/pkg/ctxreader"
	"criserver/pkg/imagesvc/progress"
	"criserver/pkg/imagesvc/registry"
)

// Push uploads an image under the pusher's tag and returns the digest of its manifest there. Layers that the repository has, or
// one of the repositories from of the same registry, are not uploaded. report, if not nil, is told how far each layer
// is, from several goroutines.
func (s *Store) Push(ctx context.Context, img Image, to *registry.Pusher, from []string, report func(progress.Layer)) (digest.Digest, error) {
	if err := img.parse(); err != nil {
		return "", err
	}
	p := &pushing{Store: s, img: &img, to: to, from: from, report: report}
	layers, err := p.exactly(ctx)
	if err == nil && layers == nil {
		layers, err = p.anew(ctx)
	}
	if err != nil {
		return "", err
	}
	desc, data, err := img.manifestFor(layers)
	if err != nil {
		return "", err
	}
	if _, err := to.PushBlob(ctx, img.parsed.Config, bytes.NewReader(img.ConfigData), registry.BlobOptions{From: from}); err != nil {
		return "", err
	}
	return to.Manifest(ctx, to.Reference().Tag(), desc.MediaType, data)
}

// pushing is a push under way.
type pushing struct {
	*Store
	img    *Image
	to     *registry.Pusher
	from   []string
	report func(progress.Layer)
}

func (p *pushing) tell(desc ocispec.Descriptor, state progress.State, sent int64) {
	if p.report != nil {
		p.report(progress.Layer{Digest: desc.Digest, State: state, Size: desc.Size, Fetched: sent, Unpacked: sent})
	}
}

// exactly brings the layers that the manifest names into the repository. It returns none if one of them cannot be had.
func (p *pushing) exactly(ctx context.Context) ([]layer, error) {
	layers := make([]layer, len(p.img.Layers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, p.Parallel))
	for i, desc := range p.img.parsed.Layers {
		group.Go(func() error {
			g, err := p.layer(ctx, p.img, i)
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
			layers[i] = layer{desc: desc, exact: true}
			p.tell(desc, progress.Exists, desc.Size)
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
func (p *pushing) anew(ctx context.Context) ([]layer, error) {
	layers := make([]layer, len(p.img.Layers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, p.Parallel))
	for i := range p.img.Layers {
		group.Go(func() error {
			g, err := p.layer(ctx, p.img, i)
			if err != nil {
				return err
			}
			if g.desc.MediaType != ocispec.MediaTypeImageLayer {
				layers[i] = g
				return p.upload(ctx, g)
			}
			desc, f, err := p.compress(ctx, g)
			if err != nil {
				return err
			}
			defer f.Close()
			layers[i] = layer{desc: desc}
			return p.uploadFrom(ctx, desc, f)
		})
	}
	return layers, group.Wait()
}

// compress writes a layer into a temporary file.
func (p *pushing) compress(ctx context.Context, l layer) (ocispec.Descriptor, *os.File, error) {
	plain, err := l.open(ctx)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer plain.Close()
	f, desc, err := TempBlob(p.Dir, func(w io.Writer) error {
		zw := gzip.NewWriter(w)
		_, err := io.Copy(zw, ctxreader.New(ctx, plain))
		return errors.Join(err, zw.Close())
	})
	if err != nil {
		return desc, nil, fmt.Errorf("compress layer %s: %w", l.desc.Digest, err)
	}
	desc.MediaType, desc.Annotations = ocispec.MediaTypeImageLayerGzip, l.desc.Annotations
	return desc, f, nil
}

// upload sends a layer that is a file.
func (p *pushing) upload(ctx context.Context, g layer) error {
	r, err := g.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := TempFile(p.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, ctxreader.New(ctx, r)); err != nil { // verified on the way
		return fmt.Errorf("read layer %s: %w", g.desc.Digest, err)
	}
	return p.uploadFrom(ctx, g.desc, f)
}

func (p *pushing) uploadFrom(ctx context.Context, desc ocispec.Descriptor, content io.ReaderAt) error {
	p.tell(desc, progress.Fetching, 0)
	how, err := p.to.PushBlob(ctx, desc, content, registry.BlobOptions{
		From: p.from, Progress: func(sent int64) { p.tell(desc, progress.Fetching, sent) },
	})
	if err != nil {
		return err
	}
	state := progress.Done
	if how != registry.PushUploaded {
		state = progress.Exists
	}
	p.tell(desc, state, desc.Size)
	return nil
}
