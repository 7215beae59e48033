// Package sweep deletes directory trees in the background, in steps, so that others get at the disk between them.
package sweep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Sweeper deletes what is in one directory, one tree after the other.
type Sweeper struct {
	dir    string
	swept  func(name string)
	signal chan struct{} // capacity 1: a wake while one is pending says nothing new
	end    context.CancelFunc
	done   chan struct{} // closed when the loop has ended
}

// New makes the sweeper of a directory, which must not be a symbolic link. swept is called for each entry that is gone.
func New(dir string, swept func(name string)) *Sweeper {
	return &Sweeper{dir: dir, swept: swept, signal: make(chan struct{}, 1)}
}

// Start begins with a sweep, of what an earlier process left.
func (s *Sweeper) Start() {
	var ctx context.Context
	ctx, s.end = context.WithCancel(context.Background())
	s.Wake()
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		s.loop(ctx)
	}()
}

// Wake says that there is something to delete. It does not block.
func (s *Sweeper) Wake() {
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// Stop ends the sweeper after the directory entry it is at, but does not wait beyond the context's end.
func (s *Sweeper) Stop(ctx context.Context) error {
	s.end()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop sweep of %s: %w", s.dir, context.Cause(ctx))
	}
}

func (s *Sweeper) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.signal:
			s.sweep(ctx)
		}
	}
}

// sweep leaves what cannot be deleted, such as a busy mount point, to the next sweep.
func (s *Sweeper) sweep(ctx context.Context) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		path := filepath.Join(s.dir, entry.Name())
		Remove(ctx, path)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			s.swept(entry.Name())
		}
	}
}

const (
	// batch is how many entries of a directory are in memory.
	batch = 512
	// step is how many entries are deleted between two breaks.
	step = 256
	// maxBreak bounds a break on a disk that is slow because it has much to do.
	maxBreak = time.Second
)

// Remove deletes a tree, as far as it can be and as long as the context lasts. It takes as long a break after each step as
// that took.
func Remove(ctx context.Context, path string) {
	parent, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return
	}
	defer parent.Close()
	r := remover{ctx: ctx, began: time.Now()}
	r.remove(parent, filepath.Base(path))
}

type remover struct {
	ctx   context.Context
	began time.Time // of the step
	count int
}

// remove deletes an entry, with all that is in it, and tells whether it did. It works with one directory open a level, since paths
// may be longer than the kernel takes.
func (r *remover) remove(in *os.Root, name string) bool {
	if !r.next() {
		return false
	}
	info, err := in.Lstat(name)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	if info.IsDir() {
		if dir, err := in.OpenRoot(name); err == nil {
			r.empty(dir)
			dir.Close()
		}
	}
	return r.ctx.Err() == nil && in.Remove(name) == nil
}

// empty deletes what is in a directory. After a batch it is read from the beginning: what of a directory is seen while it changes is
// not defined.
func (r *remover) empty(dir *os.Root) {
	for deleted := true; deleted; {
		deleted = false
		f, err := dir.Open(".")
		if err != nil {
			return
		}
		for {
			names, err := f.Readdirnames(batch)
			for _, name := range names {
				deleted = r.remove(dir, name) || deleted
			}
			if deleted || err != nil { // io.EOF too
				break
			}
		}
		f.Close()
	}
}

// next counts an entry, takes the breaks, and tells whether to go on.
func (r *remover) next() bool {
	if r.count++; r.count%step == 0 {
		select {
		case <-time.After(min(time.Since(r.began), maxBreak)):
		case <-r.ctx.Done():
		}
		r.began = time.Now()
	}
	return r.ctx.Err() == nil
}
