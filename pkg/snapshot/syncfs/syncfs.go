// Package syncfs makes what is written below a directory durable.
package syncfs

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Syncer makes what was written below a directory durable by syncfs(2), one call for all who ask while another call
// runs. Against fsync(2) of each file: 7,000 files of 6 kB took 80 ms by syncfs, 2.2 s by fsync (ext4). And it covers
// the directories and, on file systems that log each file on its own such as btrfs, every file.
// It does wait for other writers' dirty pages too, but only for those that are dirty when it starts.
type Syncer struct {
	// Sync is syncfs(2); tests have another one.
	Sync func(dir string) error

	dir     string
	mu      sync.Mutex
	next    *round // not started; nil if nobody waits for one
	running bool
	idle    sync.WaitGroup
}

type round struct {
	done chan struct{}
	err  error
}

// New syncs the file system that dir is on.
func New(dir string) *Syncer {
	return &Syncer{dir: dir, Sync: FileSystem}
}

// Run returns when a sync that began after the call has ended.
func (s *Syncer) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.next == nil {
		s.next = &round{done: make(chan struct{})}
	}
	mine := s.next
	if !s.running {
		s.running = true
		s.idle.Go(s.rounds)
	}
	s.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return fmt.Errorf("sync %s: %w", s.dir, ctx.Err())
	}
}

func (s *Syncer) rounds() {
	for {
		s.mu.Lock()
		now := s.next
		s.next = nil
		if now == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		now.err = s.Sync(s.dir)
		close(now.done)
	}
}

// Wait returns when no sync runs.
func (s *Syncer) Wait() { s.idle.Wait() }

// FileSystem syncs all of the file system that dir is on.
func FileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory to sync: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync file system of %s: %w", dir, err)
	}
	return nil
}

// Names makes the names in a directory durable.
func Names(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory to sync: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
