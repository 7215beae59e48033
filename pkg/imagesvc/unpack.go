package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"criserver/pkg/imagesvc/layertar"
	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/imagesvc/verify"
	"criserver/pkg/snapshot"
)

// made is what came of a layer's blob.
type made struct {
	usage   snapshot.Usage
	implied []string
	// keepBlob says that the tar cannot be had from what was unpacked.
	keepBlob bool
}

// unpackBlob returns without an error only if the blob and the plain tar in it have both been read to their ends and have
// their digests.
func (s *Service) unpackBlob(ctx context.Context, stage snapshot.Stage, job layerJob, blob origin.Blob) (made, error) {
	if job.file != "" {
		usage, err := unpack.File(ctx, stage.Dir(), job.file, blob, s.config.Limits)
		if err != nil {
			err = invalid(cause(job.desc.Size, blob, err))
		}
		return made{usage: usage}, err
	}
	plain, err := unpack.Decompress(ctx, job.desc.MediaType, blob, s.config.Limits)
	if err != nil {
		return made{}, invalid(cause(job.desc.Size, blob, err))
	}
	defer plain.Close()
	// One goroutine reads, hashes and decompresses the blob, one hashes the tar, one writes files: what a large layer takes
	// is spread over processors.
	ahead, stop, err := unpack.ReadAhead(plain)
	if err != nil {
		return made{}, err
	}
	defer stop() //nolint:errcheck // what was wrong, reading has said
	verified := verify.NewReader(ahead, job.id(), verify.Unknown)
	recorder, err := layertar.Record(verified, stage.Meta())
	if err != nil {
		return made{}, err
	}
	result, err := unpack.Apply(ctx, stage.Dir(), recorder, s.config.Limits)
	exact, recordErr := recorder.Finish()
	if err == nil {
		err = recordErr
	}
	if stopErr := stop(); err == nil { // from here on the blob is this goroutine's
		err = stopErr
	}
	if err != nil {
		err = cause(job.desc.Size, blob, err)
		if errors.Is(blob.Err(), io.EOF) && errors.Is(verified.Err(), verify.ErrDigest) {
			// The blob is what the manifest says: it is the image that contradicts itself, wherever it comes from.
			err = fmt.Errorf("%w: unpacked it is not %s, which the configuration says", ErrInvalid, job.id())
		}
		return made{}, invalid(err)
	}
	if !exact {
		if err := layertar.Describe(ctx, stage.Dir(), stage.Meta()); err != nil {
			return made{}, err
		}
	}
	// A decompressor may leave what follows its stream; it is part of the blob.
	if err := blob.Drain(); err != nil {
		return made{}, cause(job.desc.Size, blob, err)
	}
	return made{usage: result.Usage, implied: result.Implied, keepBlob: !exact}, nil
}

// maxDrain is what is fetched of a blob that cannot be used, to find out whether it is the right one.
const maxDrain = 16 << 20

// cause prefers what is wrong with the blob to what the decoders made of it. They may have given up before its end, where it
// turns out. The rest is read if it is here or little, or if it looks damaged, which another endpoint can make good; otherwise
// the download ends at once, see leave.
func cause(size int64, blob origin.Blob, err error) error {
	worth := size-blob.Consumed() <= maxDrain || blob.Fetched() >= size || errors.Is(err, unpack.ErrDamaged)
	if blob.Err() == nil && !isNoSpace(err) && worth {
		_ = blob.Drain() // see Err
	}
	if blobErr := blob.Err(); blobErr != nil && !errors.Is(blobErr, io.EOF) {
		return blobErr
	}
	return err
}
