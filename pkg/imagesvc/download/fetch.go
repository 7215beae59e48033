package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
)

// buffers are for copying from connections to files.
var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// start lets the connections go. They end when all is there, when one fails, or with Close.
func (b *Blob) start(ctx context.Context, origin Origin, connections int) {
	ctx, b.cancel = context.WithCancelCause(ctx)
	b.work.Go(func() {
		group, ctx := errgroup.WithContext(ctx)
		// A connection is worth its while for a chunk of its own.
		for range min(connections, len(b.have)) {
			group.Go(func() error { return b.connect(ctx, origin, connections) })
		}
		err := group.Wait()
		if err == nil {
			err = context.Cause(ctx) // of nobody, if all is there
			if b.Fetched() == b.desc.Size {
				err = nil
			}
		}
		b.mu.Lock()
		b.err = err
		b.announce()
		b.mu.Unlock()
	})
}

// connect fetches chunks until none is left.
func (b *Blob) connect(ctx context.Context, origin Origin, connections int) error {
	for ctx.Err() == nil {
		start, end, ok := b.take(connections == 1)
		if !ok {
			return nil
		}
		if err := b.fetch(ctx, origin, start, end); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// take returns the span of bytes that a connection shall fetch next: the rest of a chunk, or, for one that is alone, of all
// chunks up to the next one that is there.
func (b *Blob) take(alone bool) (start, end int64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ; b.next < len(b.have); b.next++ {
		if b.have[b.next] < b.length(b.next) {
			break
		}
	}
	if b.next == len(b.have) || b.whole {
		return 0, 0, false
	}
	start = int64(b.next)*b.chunk + b.have[b.next]
	for end = start; b.next < len(b.have) && (end == start || alone && b.have[b.next] == 0); b.next++ {
		end = int64(b.next)*b.chunk + b.length(b.next)
	}
	return start, end, true
}

// fetch gets a span of bytes, or all, if that is what comes.
func (b *Blob) fetch(ctx context.Context, origin Origin, start, end int64) (err error) {
	part, err := origin(ctx, start, end-start)
	if err != nil {
		return err
	}
	defer part.Close()
	b.mu.Lock()
	b.parts = append(b.parts, part)
	if from, to := part.Span(); from != start || to != end {
		start, end = from, to
		if b.whole { // another connection is at it
			b.mu.Unlock()
			return nil
		}
		b.whole = true
	}
	b.mu.Unlock()
	for start < end {
		n := int(start / b.chunk)
		to := min(end, int64(n)*b.chunk+b.length(n))
		if err := b.fill(part, n, start-int64(n)*b.chunk, to-start); err != nil {
			return err
		}
		start = to
	}
	return nil
}

// fill writes bytes of a part into a chunk, at an offset that is not beyond what the chunk has.
func (b *Blob) fill(part Part, n int, offset, length int64) (err error) {
	f, err := os.OpenFile(b.file(n), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("write download: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for length > 0 {
		got, readErr := part.Read((*buf)[:min(int64(len(*buf)), length)])
		if got > 0 {
			// Another connection may be at the same chunk if this one gets all: the bytes are the same.
			if _, err := f.WriteAt((*buf)[:got], offset); err != nil {
				return fmt.Errorf("write download: %w", err)
			}
			offset += int64(got)
			length -= int64(got)
			b.grown(n, offset)
		}
		switch {
		case readErr == nil, errors.Is(readErr, io.EOF) && length == 0:
		case errors.Is(readErr, io.EOF):
			return io.ErrUnexpectedEOF
		default:
			return readErr
		}
	}
	return nil
}

// grown notes that a chunk has so many bytes.
func (b *Blob) grown(n int, have int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if more := have - b.have[n]; more > 0 {
		b.have[n] = have
		b.fetched.Add(more)
		b.announce()
	}
}
