package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBounded(t *testing.T) {
	own := errors.New("own")
	ended, end := context.WithCancel(t.Context())
	end()
	forever := make(chan struct{})
	defer close(forever)
	var s stages
	hangs := func() error {
		return errors.Join(s.run("quick", func() error { return nil }), s.run("slow", func() error { <-forever; return nil }))
	}
	for name, test := range map[string]struct {
		ctx   context.Context
		limit time.Duration
		fn    func() error
		want  error
		exit  int
	}{
		"ends by itself":         {t.Context(), 0, func() error { return own }, own, 1},
		"ends after the context": {ended, time.Minute, func() error { time.Sleep(time.Millisecond); return nil }, nil, 0},
		"hangs":                  {ended, 50 * time.Millisecond, hangs, errHung, exitHung},
	} {
		t.Run(name, func(t *testing.T) {
			err := bounded(test.ctx, test.limit, test.fn, func() error { return s.hung(test.limit) })
			if !errors.Is(err, test.want) || exitStatus(err) != test.exit {
				t.Errorf("error %v, exit status %d", err, exitStatus(err))
			}
			if test.exit == exitHung && (!strings.Contains(err.Error(), "slow") || strings.Contains(err.Error(), "quick")) {
				t.Errorf("the error names the wrong stages: %v", err)
			}
		})
	}
}

// TestInterrupted sends SIGTERM to commands that wait for a pipe without a writer.
func TestInterrupted(t *testing.T) {
	if args := os.Getenv("CRISERVER_TEST_INTERRUPTED"); args != "" {
		os.Args = append([]string{"criserver"}, strings.Fields(args)...)
		os.Exit(execute(nil))
	}
	if os.Geteuid() != 0 {
		t.Skip("the commands need root")
	}
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string]string{
		"config check": "config check " + pipe,
		"image import": "image import --config /dev/null --state " + dir + " " + pipe,
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestInterrupted$")
			cmd.Env = append(os.Environ(), "CRISERVER_TEST_INTERRUPTED="+args)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // nothing tells when it waits
			before := time.Now()
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if took := time.Since(before); took > clientLimit+2*time.Second {
				t.Errorf("it took %s to end", took)
			}
			if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out.String(), "interrupted") {
				t.Errorf("it ended with %v: %s", cmd.ProcessState, out.String())
			}
		})
	}
}
