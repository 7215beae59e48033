package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/runtime"
)

// ErrNoCRIU says that the program criu is not there.
var ErrNoCRIU = errors.New("checkpoints need criu")

// Tools are what checkpoints are made of and restored with.
type Tools struct {
	// Root is the directory where checkpoints are made, and where those wait that are to be restored. It is on a disk, since they
	// are as large as the memory of the processes.
	Root string
	// CRIU is the path of criu; "" has it looked for in PATH. Helper is the program of package criu.
	CRIU, Helper string
	// FillLayer unpacks the tar of a layer into the writable layer of a snapshot.
	FillLayer func(ctx context.Context, key string, r io.Reader) error
	// FillVolumes unpacks a tar into the volumes of a snapshot, whose names are the first parts of the names in it.
	FillVolumes func(ctx context.Context, key string, r io.Reader) error
}

// Of is the directory of the checkpoint that a container is to be restored from.
func (t Tools) Of(id string) Dir { return Dir(filepath.Join(t.Root, id)) }

// Images are criu's images and log in a directory of a checkpoint. ErrNoCRIU.
func (t Tools) Images(d Dir) (runtime.Images, error) {
	criu, err := t.FindCRIU()
	return runtime.Images{Dir: d.Images(), Work: string(d), CRIU: criu, Helper: t.Helper}, err
}

// FindCRIU finds the program criu. ErrNoCRIU.
func (t Tools) FindCRIU() (path string, err error) {
	path = t.CRIU
	if path == "" {
		if path, err = exec.LookPath("criu"); err == nil {
			path, err = filepath.Abs(path)
		}
	} else {
		_, err = exec.LookPath(path)
	}
	if err != nil {
		return path, fmt.Errorf("%w, see runtime.criu in the configuration: %w", ErrNoCRIU, err)
	}
	return path, nil
}

// Remove removes the checkpoint of a container that was restored, or is not to be any more. It is idempotent.
func (t Tools) Remove(id string) error {
	if t.Root == "" {
		return nil
	}
	return t.Of(id).Remove()
}

// Prepare makes Root, and finds what an earlier process has left there: of checkpoints that it was making, and of containers that
// are not known. It is for Sweep.
func (t Tools) Prepare(known func(id string) bool) ([]Dir, error) {
	if t.Root == "" {
		return nil, nil
	}
	if err := errors.Join(os.MkdirAll(t.Root, 0o700), os.Chmod(t.Root, 0o700)); err != nil {
		return nil, fmt.Errorf("make directory of checkpoints: %w", err)
	}
	entries, err := os.ReadDir(t.Root)
	var stale []Dir
	for _, entry := range entries {
		if name := strings.TrimSuffix(entry.Name(), noteSuffix); !known(name) {
			stale = append(stale, t.Of(name))
		}
	}
	return stale, err
}

// sweepPause is between two tries: criu may still work on what a process has left that has died.
const sweepPause = time.Second

// Sweep removes directories, and tries again until ctx ends.
func Sweep(ctx context.Context, stale []Dir) {
	for _, dir := range stale {
		for err := dir.Remove(); err != nil; err = dir.Remove() {
			logrus.WithError(err).Debug("what a checkpoint has left that was cut off is removed later")
			select {
			case <-ctx.Done():
				return
			case <-time.After(sweepPause):
			}
		}
	}
}
