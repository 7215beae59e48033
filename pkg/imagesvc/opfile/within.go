package opfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ErrHangs says that a file system does not answer, or that nobody writes into a pipe.
var ErrHangs = errors.New("no answer: nobody writes into the pipe, or the server of its file system (NFS, FUSE) hangs")

// Patience is how long a file system may take to answer.
const Patience = 5 * time.Second

// limiter ends the wait for file systems. A system call that hangs cannot be ended, so that its goroutine and thread stay; there
// is one at a time for a directory, whoever asks how often, and while it hangs, whoever asks is answered at once.
type limiter struct {
	patience time.Duration

	mu    sync.Mutex
	slots map[string]*slot // by directory
}

type slot struct {
	busy  chan struct{} // has a value while a call is at work
	users int           // guarded by the limiter's mu
	since time.Time     // when the call at work began, guarded by the limiter's mu; zero if there is none
}

var files = limiter{patience: Patience, slots: map[string]*slot{}}

// Within calls fn, which does something with the file at path that may hang, and returns ErrHangs if it does not return in
// time. fn must not share anything with the caller.
func Within[T any](path string, fn func() (T, error)) (T, error) {
	return within(&files, path, fn)
}

func within[T any](l *limiter, path string, fn func() (T, error)) (T, error) {
	var none T
	timeout := time.NewTimer(l.patience)
	defer timeout.Stop()
	dir := filepath.Dir(path)
	s, ok := l.enter(dir)
	if !ok {
		return none, &fs.PathError{Op: "read", Path: path, Err: ErrHangs}
	}
	select {
	case s.busy <- struct{}{}:
	case <-timeout.C:
		l.leave(dir, s, false)
		return none, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("in %s: %w", l.patience, ErrHangs)}
	}
	l.begin(s)
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := fn()
		l.leave(dir, s, true)
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-timeout.C:
		return none, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("in %s: %w", l.patience, ErrHangs)}
	}
}

// enter returns the slot of a directory, unless what is in it hangs.
func (l *limiter) enter(dir string) (*slot, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slots[dir]
	if s == nil {
		s = &slot{busy: make(chan struct{}, 1)}
		l.slots[dir] = s
	}
	if !s.since.IsZero() && time.Since(s.since) > l.patience {
		return nil, false
	}
	s.users++
	return s, true
}

func (l *limiter) begin(s *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.since = time.Now()
}

func (l *limiter) leave(dir string, s *slot, worked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if worked {
		s.since = time.Time{}
		<-s.busy
	}
	if s.users--; s.users == 0 {
		delete(l.slots, dir)
	}
}

// ReadDir is os.ReadDir, within Patience.
func ReadDir(path string) ([]fs.DirEntry, error) {
	return Within(path, func() ([]fs.DirEntry, error) { return os.ReadDir(path) })
}

// Stat is os.Stat, within Patience.
func Stat(path string) (fs.FileInfo, error) {
	return Within(path, func() (fs.FileInfo, error) { return os.Stat(path) })
}
