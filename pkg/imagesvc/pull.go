package imagesvc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/snapshot"
)

// Docker's media types, which most images have.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifestOld  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerManifestV1   = "application/vnd.docker.distribution.manifest.v1+json"
)

// maxLayers is more than any file system driver can stack.
const maxLayers = 500

// Pull fetches an image and returns its ID. Equal pulls at the same time are one. It has no deadline but the no-progress
// timeout of the registry client; cancelling the last caller's ctx ends it.
func (s *Service) Pull(ctx context.Context, name string, auth registry.Auth) (string, error) {
	ref, err := registry.Parse(name)
	if err != nil {
		return "", fmt.Errorf("pull: %w: %w", ErrInvalid, err)
	}
	// Callers with other credentials must not be let in by those of the first.
	key := fmt.Sprintf("%s %x", ref, digest.FromString(fmt.Sprintln(auth.Username, auth.Password, auth.Auth,
		auth.ServerAddress, auth.IdentityToken, auth.RegistryToken)))
	id, err := s.pulls.do(ctx, key, func(ctx context.Context) (digest.Digest, error) {
		start := time.Now()
		id, err := s.pull(ctx, ref, auth)
		log := logrus.WithFields(logrus.Fields{"image": ref.String(), "took": time.Since(start).Round(time.Millisecond)})
		if err != nil {
			log.WithError(err).Warn("pull failed")
			return id, err
		}
		log.WithField("id", id).Info("image is pulled")
		return id, nil
	})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	return id.String(), nil
}

// pull is the way of an image onto the node.
func (s *Service) pull(ctx context.Context, ref registry.Reference, auth registry.Auth) (digest.Digest, error) {
	src := s.registry.Open(ref, auth)
	resolved, data, err := src.Resolve(ctx)
	if err != nil {
		return "", err
	}
	manifest, desc, raw, err := s.manifest(ctx, src, resolved, data)
	if err != nil {
		return "", err
	}
	config, configData, err := s.imageConfig(ctx, src, manifest)
	if err != nil {
		return "", err
	}
	release, err := s.lease(ctx, append([]digest.Digest{manifest.Config.Digest, desc.Digest}, config.RootFS.DiffIDs...))
	if err != nil {
		return "", err
	}
	defer release()
	usage, err := s.fetchLayers(ctx, src, manifest.Layers, config.RootFS.DiffIDs)
	if err != nil {
		return "", err
	}
	if err := s.content.Write(desc.Digest, raw); err != nil {
		return "", err
	}
	if err := s.content.Write(manifest.Config.Digest, configData); err != nil {
		return "", err
	}
	img := Image{
		ID: manifest.Config.Digest, Manifest: desc.Digest, Size: desc.Size + manifest.Config.Size,
		Config: config, DiffIDs: config.RootFS.DiffIDs, Annotations: manifest.Annotations, Pulled: time.Now().Round(0),
	}
	for _, l := range manifest.Layers {
		img.Size += l.Size
	}
	return img.ID, s.put(ctx, img, ref, resolved.Digest, usage)
}

// manifest finds the manifest for this machine's platform, in an index or as the document itself.
func (s *Service) manifest(ctx context.Context, src *registry.Source, desc ocispec.Descriptor, data []byte) (ocispec.Manifest, ocispec.Descriptor, []byte, error) {
	var m ocispec.Manifest
	for depth := 0; ; depth++ {
		switch desc.MediaType {
		case ocispec.MediaTypeImageIndex, dockerManifestList:
			if depth > 2 {
				return m, desc, nil, fmt.Errorf("%w: indexes are nested more than 2 deep", ErrInvalid)
			}
			var index ocispec.Index
			if err := json.Unmarshal(data, &index); err != nil {
				return m, desc, nil, fmt.Errorf("decode index %s: %w: %w", desc.Digest, ErrInvalid, err)
			}
			var err error
			if desc, err = pickPlatform(index); err != nil {
				return m, desc, nil, err
			}
			if data, err = src.Document(ctx, desc); err != nil {
				return m, desc, nil, err
			}
		case ocispec.MediaTypeImageManifest, dockerManifest:
			if err := json.Unmarshal(data, &m); err != nil {
				return m, desc, nil, fmt.Errorf("decode manifest %s: %w: %w", desc.Digest, ErrInvalid, err)
			}
			if len(m.Layers) > maxLayers {
				return m, desc, nil, fmt.Errorf("%w: %d layers, at most %d can be stacked", ErrInvalid, len(m.Layers), maxLayers)
			}
			return m, desc, data, nil
		case dockerManifestOld, dockerManifestV1:
			return m, desc, nil, fmt.Errorf("%w: its manifest is of Docker schema 1, which is given up everywhere: push it again "+
				"with a tool of this decade", ErrInvalid)
		default:
			return m, desc, nil, fmt.Errorf("%w: media type %q is no image", ErrInvalid, desc.MediaType)
		}
	}
}

// pickPlatform chooses the best manifest of an index for this machine.
func pickPlatform(index ocispec.Index) (ocispec.Descriptor, error) {
	matcher := platforms.Default()
	var best *ocispec.Descriptor
	var offered []string
	for i, d := range index.Manifests {
		p := platforms.DefaultSpec()
		if d.Platform != nil {
			p = *d.Platform
			offered = append(offered, platforms.Format(p))
		}
		if matcher.Match(p) && (best == nil || best.Platform != nil && matcher.Less(p, *best.Platform)) {
			best = &index.Manifests[i]
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: there is none for %s, only for %v", ErrInvalid, platforms.DefaultString(), offered)
	}
	return *best, nil
}

// imageConfig reads the configuration and checks that it and the manifest speak of the same layers.
func (s *Service) imageConfig(ctx context.Context, src *registry.Source, m ocispec.Manifest) (ocispec.Image, []byte, error) {
	var config ocispec.Image
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
	default:
		return config, nil, fmt.Errorf("%w: configuration of media type %q is no image's", ErrInvalid, m.Config.MediaType)
	}
	data, err := src.Document(ctx, m.Config)
	if err != nil {
		return config, nil, err
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return config, nil, fmt.Errorf("decode configuration %s: %w: %w", m.Config.Digest, ErrInvalid, err)
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return config, nil, fmt.Errorf("%w: the configuration has %d layers, the manifest %d", ErrInvalid,
			len(config.RootFS.DiffIDs), len(m.Layers))
	}
	for _, d := range config.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return config, nil, fmt.Errorf("%w: diff ID %q: %w", ErrInvalid, d, err)
		}
	}
	return config, data, nil
}

// fetchLayers fetches the layers that are not there, some at a time, and tells what each takes.
func (s *Service) fetchLayers(ctx context.Context, src *registry.Source, layers []ocispec.Descriptor, ids []digest.Digest) (map[digest.Digest]snapshot.Usage, error) {
	usage := map[digest.Digest]snapshot.Usage{}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, s.config.ParallelLayers))
	for i, desc := range layers {
		chain := ids[:i+1]
		group.Go(func() error {
			u, err := s.layer(ctx, src.Clone(), desc, chain)
			if err != nil {
				return fmt.Errorf("layer %s: %w", desc.Digest, err)
			}
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(usage, map[digest.Digest]snapshot.Usage{chain[i]: u})
			return nil
		})
	}
	return usage, group.Wait()
}

// layer makes sure that a layer is there. At any time one fetch a diffID is under way, for whatever images.
func (s *Service) layer(ctx context.Context, src *registry.Source, desc ocispec.Descriptor, chain []digest.Digest) (snapshot.Usage, error) {
	id := chain[len(chain)-1]
	for {
		u, err := s.layers.Layer(ctx, chain)
		if err == nil || !errors.Is(err, snapshot.ErrNotFound) {
			return u, err
		}
		u, err = s.fetchs.do(ctx, id, func(ctx context.Context) (snapshot.Usage, error) {
			return s.fetch(ctx, src, desc, chain)
		})
		// The one who fetched may have had no right to, or have gone: then this pull tries by itself.
		if err == nil || ctx.Err() != nil || !errors.Is(err, errLeft) {
			return u, err
		}
	}
}

// fetch unpacks a layer while it arrives. The stage is committed only when both digests, of the compressed and of the plain
// bytes, are right.
func (s *Service) fetch(ctx context.Context, src *registry.Source, desc ocispec.Descriptor, chain []digest.Digest) (_ snapshot.Usage, err error) {
	var none snapshot.Usage
	stage, err := s.layers.Stage(ctx, chain)
	if errors.Is(err, snapshot.ErrExists) {
		return s.layers.Layer(ctx, chain)
	}
	if err != nil {
		return none, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stage.Abort(context.WithoutCancel(ctx)))
		}
	}()
	blob, err := src.Blob(ctx, desc)
	if err != nil {
		return none, err
	}
	defer blob.Close()
	plain, err := unpack.Decompress(desc.MediaType, blob)
	if err != nil {
		return none, firstRead(blob, err)
	}
	defer plain.Close()
	id := chain[len(chain)-1]
	hash := id.Algorithm().Digester()
	result, err := unpack.Apply(ctx, stage.Dir(), io.TeeReader(plain, hash.Hash()))
	if err != nil {
		return none, firstRead(blob, err)
	}
	// What follows the compressed stream is part of the blob's digest.
	if _, err := io.Copy(io.Discard, blob); err != nil {
		return none, err
	}
	if got := hash.Digest(); got != id {
		return none, fmt.Errorf("%w: unpacked it is %s, the configuration says %s", ErrInvalid, got, id)
	}
	if inheritor, ok := stage.(snapshot.Inheritor); ok {
		inheritor.Inherit(result.Implied)
	}
	if err := stage.Commit(ctx, result.Usage); err != nil {
		return none, err
	}
	return result.Usage, nil
}

// firstRead prefers the reader's own error (a cut, a wrong digest) to what the unpacker made of it.
func firstRead(blob io.Reader, err error) error {
	for _, known := range []error{registry.ErrTruncated, registry.ErrDigest, registry.ErrStalled} {
		if errors.Is(err, known) {
			return err
		}
	}
	if _, readErr := blob.Read(make([]byte, 1)); readErr != nil && readErr != io.EOF {
		return fmt.Errorf("%w (unpacking: %w)", readErr, err)
	}
	return err
}
