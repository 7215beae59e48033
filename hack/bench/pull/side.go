package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/hack/bench/turns"
)

// side is one runtime.
type side struct {
	label, socket, proc, root string

	name   string
	conn   *grpc.ClientConn
	images runtimeapi.ImageServiceClient
	idle   memory // before its first pull
	empty  int64  // bytes below its root, then
}

// maxKept is what a runtime without images may have more below its root than before its first pull: databases grow.
const maxKept = 4 << 20

func (s *side) dial(ctx context.Context) (err error) {
	s.conn, s.name, err = turns.Dial(ctx, "unix://"+s.socket)
	if err != nil {
		return err
	}
	if s.label != "" {
		s.name += " " + s.label
	}
	s.images = runtimeapi.NewImageServiceClient(s.conn)
	if s.idle, err = memoryOf(s.proc); err != nil {
		return err
	}
	s.empty, err = bytesBelow(s.root)
	return err
}

// sample is what one pull took.
type sample struct {
	pull, sync  time.Duration // sync: until all is on the disk after the pull
	cpu, kernel time.Duration // kernel: of cpu
	written     int64
	rss, pss    int64 // peaks in bytes
	unpacked    int64 // bytes below the root more than before
	overRSSIdle int64
}

// once pulls an image that is not there and removes it again.
func (s *side) once(ctx context.Context, image string) (sample, error) {
	var got sample
	spec := &runtimeapi.ImageSpec{Image: image}
	// What an earlier run wrote must not be flushed in this one.
	unix.Sync()
	if err := resetPeak(s.proc); err != nil {
		return got, err
	}
	before, err := spentBy(s.proc)
	if err != nil {
		return got, err
	}
	peak := watchPSS(s.proc)
	begin := time.Now()
	_, err = s.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec})
	got.pull = time.Since(begin)
	got.pss = peak()
	if err != nil {
		return got, fmt.Errorf("pull: %w", err)
	}
	begin = time.Now()
	if err := syncFS(s.root); err != nil {
		return got, err
	}
	got.sync = time.Since(begin)
	after, err := spentBy(s.proc)
	if err != nil {
		return got, err
	}
	m, err := memoryOf(s.proc)
	if err != nil {
		return got, err
	}
	got.cpu, got.kernel, got.written = after.cpu-before.cpu, after.kernel-before.kernel, after.written-before.written
	got.rss, got.overRSSIdle = m.peakRSS, m.peakRSS-s.idle.rss
	full, err := bytesBelow(s.root)
	if err != nil {
		return got, err
	}
	got.unpacked = full - s.empty
	return got, s.remove(ctx, spec)
}

// remove removes the image and waits until its space is free.
func (s *side) remove(ctx context.Context, spec *runtimeapi.ImageSpec) error {
	if _, err := s.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left, err := bytesBelow(s.root)
		if err != nil {
			return err
		}
		if left <= s.empty+maxKept {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d bytes more than at first are below %s, 30 s after the image was removed", left-s.empty, s.root)
		}
	}
}

// bytesBelow is what the files below a directory take on disk. Those that vanish meanwhile are not counted.
func bytesBelow(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return sum, nil
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
