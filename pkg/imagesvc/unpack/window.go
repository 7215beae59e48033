package unpack

import (
	"bufio"
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"golang.org/x/sync/semaphore"

	"criserver/pkg/imagesvc/compression"
)

const (
	// plainWindow is what each decoder has: RFC 8878 recommends it, and what builds images asks for no more unless it is told to.
	plainWindow = 8 << 20
	// DefaultWindow is the largest window without a setting.
	DefaultWindow = 32 << 20
	// MaxWindow is the largest that can be set: the decoder has no larger.
	MaxWindow = 512 << 20
)

// largeWindows is memory for windows beyond plainWindow, for the whole process: layers that need them are unpacked one after
// the other, however many images are pulled. The others do not wait for them.
var largeWindows = semaphore.NewWeighted(DefaultWindow)

// reserve waits for the memory that a zstd stream needs. It returns what the window may be.
func reserve(ctx context.Context, r *bufio.Reader, limits Limits) (window uint64, release func(), err error) {
	limit := uint64(max(limits.Window, plainWindow))
	if limits.Window == 0 {
		limit = DefaultWindow
	}
	head, _ := r.Peek(r.Size()) // who reads on meets the error
	window = compression.Window(head)
	switch {
	case window > limit:
		return 0, nil, fmt.Errorf("%w: decompressing it takes a window of %d bytes, and image.max_zstd_window allows %d: raise that, "+
			"or have the image compressed without --ultra and --long", ErrInvalid, window, limit)
	case window == 0:
		window = limit // it begins with something that is skipped
	}
	if window <= plainWindow {
		return plainWindow, func() {}, nil
	}
	taken := int64(min(window, DefaultWindow)) // all of it for one that is larger
	if err := largeWindows.Acquire(ctx, taken); err != nil {
		return 0, nil, fmt.Errorf("wait for memory to decompress: %w", context.Cause(ctx))
	}
	return window, sync.OnceFunc(func() {
		debug.FreeOSMemory() // before the next one takes as much
		largeWindows.Release(taken)
	}), nil
}
