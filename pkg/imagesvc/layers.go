package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/imagesvc/verify"
	"criserver/pkg/snapshot"
)

const (
	// abortLimit is how long a half unpacked layer may take to be removed.
	abortLimit = 30 * time.Second
	// maxJoins is how often a pull relies on others' fetches of a layer before it makes its own.
	maxJoins = 3
)

// fetchLayers fetches the layers that are not there, some at a time.
func (s *Service) fetchLayers(ctx context.Context, src *source) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, s.config.ParallelLayers))
	ids := src.config.RootFS.DiffIDs
	for i, desc := range src.parsed.Layers {
		group.Go(func() error {
			if err := s.layer(ctx, src.repo, desc, ids[:i+1]); err != nil {
				return fmt.Errorf("layer %s: %w", desc.Digest, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// layer makes sure that a layer is there. At any time one fetch a diffID is under way, for whatever images.
func (s *Service) layer(ctx context.Context, repo *registry.Repository, desc ocispec.Descriptor, chain []digest.Digest) error {
	for joins := 0; ; joins++ {
		_, err := s.layers.Layer(ctx, chain)
		if !errors.Is(err, snapshot.ErrNotFound) {
			return err
		}
		fetch := func(ctx context.Context) (struct{}, error) {
			return struct{}{}, s.fetchAnywhere(ctx, repo, desc, chain)
		}
		_, own, err := s.fetches.do(ctx, chain[len(chain)-1], fetch)
		// Another pull's fetch may have failed where this one's does not: its registry, its credentials, its callers.
		if err == nil || own || ctx.Err() != nil || joins == maxJoins {
			return err
		}
	}
}

// fetchAnywhere fetches a layer from another endpoint when what the first one sends cannot be used.
func (s *Service) fetchAnywhere(ctx context.Context, repo *registry.Repository, desc ocispec.Descriptor, chain []digest.Digest) error {
	for {
		err := s.fetch(ctx, repo, desc, chain)
		damaged := errors.Is(err, registry.ErrDigest) || errors.Is(err, registry.ErrTruncated) || errors.Is(err, registry.ErrStalled)
		// Each such error leaves one endpoint less.
		if !damaged || !repo.CanTryElsewhere() || ctx.Err() != nil {
			return err
		}
	}
}

// fetch unpacks a layer while it arrives. The stage is committed only when both digests, of the compressed and of the plain
// bytes, are right.
func (s *Service) fetch(ctx context.Context, repo *registry.Repository, desc ocispec.Descriptor, chain []digest.Digest) (err error) {
	stage, err := s.layers.Stage(ctx, chain)
	if errors.Is(err, snapshot.ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortLimit)
			defer cancel()
			err = errors.Join(err, stage.Abort(ctx))
		}
	}()
	blob, err := repo.Blob(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	result, err := unpackBlob(ctx, stage.Dir(), desc.MediaType, blob, chain[len(chain)-1])
	if err != nil {
		return err
	}
	if inheritor, ok := stage.(snapshot.Inheritor); ok {
		inheritor.Inherit(result.Implied)
	}
	return stage.Commit(ctx, result.Usage)
}

// unpackBlob returns without an error only if the blob and the plain tar in it have both been read to their ends and have
// their digests.
func unpackBlob(ctx context.Context, dir, mediaType string, blob *registry.Blob, diffID digest.Digest) (unpack.Result, error) {
	plain, err := unpack.Decompress(mediaType, blob)
	if err != nil {
		return unpack.Result{}, cause(blob, err)
	}
	defer plain.Close()
	verified := verify.NewReader(plain, diffID, verify.Unknown)
	result, err := unpack.Apply(ctx, dir, verified)
	if err == nil {
		err = verified.Drain()
	}
	if err != nil {
		if blob.Err() == nil || errors.Is(blob.Err(), io.EOF) {
			if errors.Is(verified.Err(), verify.ErrDigest) {
				// The blob is what the manifest says: it is the image that contradicts itself, wherever it comes from.
				return result, fmt.Errorf("%w: unpacked it is not %s, which the configuration says", ErrInvalid, diffID)
			}
		}
		return result, cause(blob, err)
	}
	// A decompressor may leave what follows its stream; it is part of the blob.
	return result, blob.Drain()
}

// cause prefers what was wrong with the blob to what the decoders made of it.
func cause(blob *registry.Blob, err error) error {
	if blobErr := blob.Err(); blobErr != nil && !errors.Is(blobErr, io.EOF) {
		return blobErr
	}
	return err
}
