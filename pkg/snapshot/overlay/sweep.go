package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// sweeper deletes the content of the trash directory, one tree after the other.
type sweeper struct {
	trash  string
	swept  func(name string) // called for each tree that is gone
	signal chan struct{}     // capacity 1: a wake while one is pending says nothing new
	end    context.CancelFunc
	done   sync.WaitGroup
}

func newSweeper(trash string, swept func(name string)) *sweeper {
	return &sweeper{trash: trash, swept: swept, signal: make(chan struct{}, 1)}
}

// start starts with a sweep, of what an earlier process left.
func (w *sweeper) start() {
	var ctx context.Context
	ctx, w.end = context.WithCancel(context.Background())
	w.wake()
	w.done.Go(func() { w.loop(ctx) })
}

// wake says that there is something to delete. It does not block.
func (w *sweeper) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// stop ends the sweeper after the directory entry it is at.
func (w *sweeper) stop(ctx context.Context) error {
	w.end()
	if err := waitOn(ctx, w.done.Wait); err != nil {
		return fmt.Errorf("stop sweep of %s: %w", w.trash, err)
	}
	return nil
}

func (w *sweeper) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.signal:
			w.sweep(ctx)
		}
	}
}

// sweep leaves what cannot be deleted, such as a busy mount point, to the next sweep.
func (w *sweeper) sweep(ctx context.Context) {
	entries, err := os.ReadDir(w.trash)
	if err != nil {
		return
	}
	for _, entry := range entries {
		path := filepath.Join(w.trash, entry.Name())
		removeTree(ctx, path, 4)
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			w.swept(entry.Name())
		}
	}
}

// removeTree deletes a tree, looking at the context between the entries of its uppermost levels.
func removeTree(ctx context.Context, path string, levels int) {
	if levels > 0 {
		entries, err := os.ReadDir(path)
		if err != nil {
			entries = nil // not a directory, or gone
		}
		for _, entry := range entries {
			if ctx.Err() != nil {
				return
			}
			if entry.IsDir() {
				removeTree(ctx, filepath.Join(path, entry.Name()), levels-1)
			}
		}
	}
	if ctx.Err() == nil {
		_ = os.RemoveAll(path)
	}
}
