package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// Limits of the end of a process that was told to end. What cannot be cancelled, such as open(2) of a file on a hung file
// system, or of a pipe without a writer, does not hold it up: records are whole at any instruction.
const (
	stopLimit   = 25 * time.Second // of the daemon
	callsLimit  = 10 * time.Second // of it for the calls under way; those of administrators are then cancelled, and waited for
	clientLimit = 3 * time.Second  // of other commands: to tell the daemon
)

// exitHung is the exit status of a daemon of which something did not end.
const exitHung = 3

// errHung says that the daemon was told to stop, and something of it did not end.
var errHung = errors.New("not everything has ended")

// exitStatus is that of a command that returned err.
func exitStatus(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errHung):
		return exitHung
	}
	return 1
}

// stages are what the daemon is at, by name.
type stages struct {
	mu    sync.Mutex
	names []string
}

// run runs one of them.
func (s *stages) run(name string, fn func() error) error {
	s.mu.Lock()
	s.names = append(s.names, name)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := slices.Index(s.names, name)
		s.names = slices.Delete(s.names, i, i+1)
	}()
	return fn()
}

// hung is the error of those that are still at work.
func (s *stages) hung(limit time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := strings.Join(s.names, ", ")
	say(func() {
		logrus.WithField("stages", names).Errorf("not everything has ended in %s; the daemon exits all the same. Records are whole, "+
			"containers go on. Look for a file system that hangs", limit)
	})
	return fmt.Errorf("stop: %w in %s: %s", errHung, limit, names)
}

// say runs what tells something, and does not wait long for it: the log may be what hangs.
func say(tell func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		tell()
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

// bounded runs fn to its end, but not longer than limit after the end of ctx: then it returns what hung does.
func bounded(ctx context.Context, limit time.Duration, fn, hung func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return hung()
	}
}

// interruptible makes a command end when it is told to, whatever it waits for.
func interruptible(run func(cmd *cobra.Command, args []string) error) func(cmd *cobra.Command, args []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		return bounded(ctx, clientLimit, func() error { return run(cmd, args) }, func() error {
			return fmt.Errorf("interrupted: %w", ctx.Err())
		})
	}
}
