package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/progress"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/snapshot"
)

const (
	// abortLimit is how long a half unpacked layer may take to be removed.
	abortLimit = 30 * time.Second
	// maxJoins is how often a pull relies on others' fetches of a layer before it makes its own.
	maxJoins = 3
)

// layerJob is a layer to be made.
type layerJob struct {
	from origin.Layers
	desc ocispec.Descriptor
	// chain are the layers up to and with this one.
	chain []digest.Digest
	// file is the name of the file that an artifact's layer is; "" for a tar.
	file string
	// unpacked is called when only waiting for the disk is left, if not nil.
	unpacked func()
}

func (j layerJob) id() digest.Digest { return j.chain[len(j.chain)-1] }

// fetchKey tells fetches that are one: others cannot take part in each other.
type fetchKey struct {
	layer, blob digest.Digest
	joint       bool
}

// join has the job's registry take part in the fetch of its layer, until leave is called.
func (s *Service) join(job layerJob) (joint layerJob, key fetchKey, leave func()) {
	key = fetchKey{layer: job.id(), blob: job.desc.Digest}
	job.from, key.joint, leave = origin.Join(&s.sources, job.from, key.blob)
	return job, key, leave
}

// fetchLayers makes the layers that are not there. Some at a time are fetched and unpacked; those that wait for the disk do not
// count.
func (s *Service) fetchLayers(ctx context.Context, from origin.Origin, docs *document.Image, watched *progress.Tracked) error {
	watched.Layers(docs.Parsed.Layers, docs.Layers)
	slots := make(chan struct{}, max(1, s.config.ParallelLayers))
	group, working := errgroup.WithContext(ctx)
	for i, desc := range docs.Parsed.Layers {
		if _, err := take(working, slots); err != nil {
			break
		}
		job := layerJob{from: from, desc: desc, chain: docs.Layers[:i+1], unpacked: sync.OnceFunc(func() { <-slots })}
		if docs.Artifact {
			job.file = docs.Files[i]
		}
		group.Go(func() error {
			defer job.unpacked()
			if err := s.layer(working, job); err != nil {
				return fmt.Errorf("layer %s: %w", desc.Digest, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx) // else all have been begun
}

// layer makes sure that a layer is there. At any time one fetch of its blob is under way, for and from whatever images.
func (s *Service) layer(ctx context.Context, job layerJob) error {
	joint, key, leave := s.join(job)
	defer leave()
	for joins := 0; ; joins++ {
		_, err := s.layers.Layer(ctx, job.chain)
		if errors.Is(err, snapshot.ErrDamaged) || err == nil && job.file == "" && s.store().Lost(ctx, job.id(), job.desc.Digest) {
			return s.again(ctx, job)
		}
		if !errors.Is(err, snapshot.ErrNotFound) {
			return err
		}
		fetch := func(ctx context.Context) (struct{}, error) {
			stage, err := s.layers.Stage(ctx, job.chain)
			if errors.Is(err, snapshot.ErrExists) {
				return struct{}{}, nil
			}
			if err != nil {
				return struct{}{}, err
			}
			return struct{}{}, s.fill(ctx, stage, joint)
		}
		_, own, err := s.fetches.Do(ctx, key, fetch)
		// Another pull's fetch may have failed where this one's does not: its registry, its credentials, its callers.
		if err == nil || own || ctx.Err() != nil || joins == maxJoins {
			return err
		}
	}
}

// fill makes the layer in the stage, which it ends, from another endpoint when what the first one sends cannot be used.
func (s *Service) fill(ctx context.Context, stage snapshot.Stage, job layerJob) (err error) {
	defer func() {
		if err == nil {
			return
		}
		if isNoSpace(err) { // now, not in the background: whoever comes next needs it
			err = errors.Join(err, unpack.Empty(stage.Dir()))
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortLimit)
		defer cancel()
		err = errors.Join(err, stage.Abort(ctx))
	}()
	return origin.Again(ctx, job.from, func() error {
		if err := unpack.Empty(stage.Dir()); err != nil {
			return err
		}
		return s.fetch(ctx, stage, job)
	})
}

// fetch unpacks a layer while it arrives. The stage is committed only when both digests, of the compressed and of the plain
// bytes, are right.
func (s *Service) fetch(ctx context.Context, stage snapshot.Stage, job layerJob) (err error) {
	began := time.Now()
	blob, err := job.from.Layer(ctx, job.desc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.leave(blob, began, err)) }()
	watched := s.progress.Layer(job.id(), blob)
	defer watched.End()
	made, err := s.unpackBlob(ctx, stage, job, blob)
	if err != nil {
		return err
	}
	watched.Committing()
	if made.keepBlob || s.config.KeepBlobs {
		copied := func(w io.Writer) (int64, error) { return origin.Copy(ctx, w, blob, job.from, job.desc) }
		if err := s.content.WriteFrom(job.desc.Digest, copied); err != nil {
			return err
		}
	}
	// What is deleted need not be written to the disk by the sync that follows.
	if err := blob.Discard(); err != nil {
		return err
	}
	if inheritor, ok := stage.(snapshot.Inheritor); ok {
		inheritor.Inherit(made.implied)
	}
	if job.unpacked != nil {
		job.unpacked()
	}
	return stage.Commit(ctx, made.usage)
}

// leave ends the use of a blob. One that was whole, but of no use, is not kept, nor is any on a full disk, which another layer may
// have met, nor one that may be damaged, without which the next pull would not come to another end.
func (s *Service) leave(blob origin.Blob, began time.Time, err error) error {
	if isNoSpace(err) {
		s.full.Store(time.Now().UnixNano())
	}
	full := s.full.Load() > began.UnixNano()
	if err == nil || errors.Is(blob.Err(), io.EOF) || full || errors.Is(err, ErrInvalid) {
		return blob.Discard()
	}
	return blob.Close()
}
