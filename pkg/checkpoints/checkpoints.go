// Package checkpoints makes checkpoints of containers and pods, and finds those that containers are restored from. It is above
// pkg/sandbox, which has the processes, and pkg/imagesvc, which has the files.
package checkpoints

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/claim"
	"criserver/pkg/imagesvc"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/want"
)

// ErrForbidden says that checkpoints of that kind are not restored.
var ErrForbidden = errors.New("not allowed")

// defaultLimit is how long a checkpoint may take whose caller does not say; thawLimit how long the end may take.
const (
	defaultLimit = 2 * time.Minute
	thawLimit    = time.Minute
)

// Pods is what is needed of the pods; see sandbox.Service for the contracts.
type Pods interface {
	Pod(id string) (sandbox.PodStatus, error)
	Container(id string) (sandbox.ContainerStatus, error)
	Freeze(ctx context.Context, id string) (thaw func(context.Context) error, err error)
	Dump(ctx context.Context, id string, to runtime.Images) error
	Specification(id string) ([]byte, error)
}

// Runner makes the pods that are restored; see sandbox.Service for the contracts.
type Runner interface {
	Pods() []sandbox.PodStatus
	Containers() []sandbox.ContainerStatus
	FinishPod(ctx context.Context, id string) error
	RunPod(ctx context.Context, c want.Pod) (string, error)
	RemovePod(ctx context.Context, id string) error
	CreateContainer(ctx context.Context, podID string, c want.Container, img want.Image) (string, error)
}

// Images is what is needed of the images; see imagesvc.Service for the contracts.
type Images interface {
	Ready(ctx context.Context, ref string) (imagesvc.Image, error)
	Annotations(img imagesvc.Image) (map[string]string, error)
	UnpackFiles(ctx context.Context, r io.Reader, dir string) error
	CopyFiles(ctx context.Context, img imagesvc.Image, dir string) error
	CopyTree(ctx context.Context, from, to string) error
	WriteLayer(ctx context.Context, key string, w io.Writer) error
	WriteVolumes(ctx context.Context, key string, w io.Writer) error
}

// Service makes and finds checkpoints. Its methods may be called at the same time.
type Service struct {
	Pods   Pods
	Runner Runner
	Images Images
	Tools  checkpoint.Tools
	// Files are the host's, which may be where it hangs: archives that are restored, and the places of those that are made.
	Files hostpath.Files
	// FromImages allows images to be checkpoints. Whoever can name an image can choose one then, and a checkpoint says itself what
	// its processes may do.
	FromImages bool

	restoring claim.Claims // the pods that are being restored
}

// FindCRIU is the path of criu, which all checkpoints need. checkpoint.ErrNoCRIU.
func (s *Service) FindCRIU() (string, error) { return s.Tools.FindCRIU() }

// CheckpointContainer writes a running container into an archive at the absolute path location, where nothing may be: the state of
// its processes and what they have written. They are stopped meanwhile and go on then, whatever comes of it. A timeout of 0 is
// the default. Errors are those of sandbox: ErrInvalid, ErrExists, ErrState (it does not run), ErrUnavailable (there is no criu),
// ErrTimeout.
func (s *Service) CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error {
	if _, err := hostpath.Soon(ctx, s.Files.Asker, location, func() (struct{}, error) { return struct{}{}, s.checkLocation(location) }); err != nil {
		return err
	}
	c, err := s.Pods.Container(id)
	if err != nil {
		return err
	}
	pod, err := s.Pods.Pod(c.PodID)
	if err == nil {
		err = checkUsers(pod)
	}
	if err != nil {
		return err
	}
	ctx, cancel := limited(ctx, cmp.Or(timeout, defaultLimit))
	defer cancel()
	if err := s.checkpoint(ctx, c, location); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", c.ID, err)
	}
	logrus.WithFields(logrus.Fields{"container": c.ID, "location": location}).Info("container is checkpointed")
	return nil
}

// bounded gives a call without a deadline the default one.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return limited(ctx, defaultLimit)
}

func limited(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %s: %w", limit, sandbox.ErrTimeout))
}

// checkUsers refuses what could not be restored: criu does not bring a pod's user namespace back.
func checkUsers(pod sandbox.PodStatus) error {
	if pod.Config.Namespaces.Users != nil {
		return fmt.Errorf("%w: containers in a user namespace cannot be checkpointed", want.ErrInvalid)
	}
	return nil
}

// maxName is the longest name of an archive: while it is written it has a longer one.
const maxName = 200

func (s *Service) checkLocation(location string) error {
	switch base := filepath.Base(location); {
	case !filepath.IsAbs(location) || filepath.Clean(location) != location || strings.ContainsRune(location, 0):
		return fmt.Errorf("location: %w: %q is not an absolute, clean path", want.ErrInvalid, location)
	case len(base) > maxName:
		return fmt.Errorf("location: %w: the name %.40q… is longer than %d bytes", want.ErrInvalid, base, maxName)
	case strings.HasPrefix(location, s.Tools.Root+"/"):
		return fmt.Errorf("location: %w: %s is criserver's own", want.ErrInvalid, s.Tools.Root)
	}
	if info, err := os.Stat(filepath.Dir(location)); err != nil || !info.IsDir() {
		return fmt.Errorf("location: %w: %s is not a directory", want.ErrInvalid, filepath.Dir(location))
	}
	if _, err := os.Lstat(location); err == nil {
		return fmt.Errorf("location: %s: %w", location, sandbox.ErrExists)
	}
	return nil
}

func (s *Service) checkpoint(ctx context.Context, c sandbox.ContainerStatus, location string) error {
	dir, err := checkpoint.MakeDir(s.Tools.Root)
	if err != nil {
		return err
	}
	err = s.frozen(ctx, []sandbox.ContainerStatus{c}, func() error { return s.capture(ctx, c, dir) })
	if err != nil {
		return errors.Join(err, dir.Remove())
	}
	packed := make(chan error, 1)
	go func() { // a disk that hangs holds up this goroutine and not the call
		packed <- errors.Join(dir.Pack(ctx, location), dir.Remove())
	}()
	select {
	case err := <-packed:
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w: %w", sandbox.ErrExists, err)
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// frozen calls fn while the processes of all containers stand still, which go on then, whatever comes of it: also when ctx ends, though
// fn may be left behind in a file system that hangs.
func (s *Service) frozen(ctx context.Context, containers []sandbox.ContainerStatus, fn func() error) (err error) {
	defer func() {
		if ctx.Err() != nil && err != nil && !errors.Is(err, context.Cause(ctx)) {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err) // what failed may have failed for that
		}
	}()
	for _, c := range containers {
		if c.Phase != sandbox.ContainerRunning {
			return fmt.Errorf("container %s is %s, not running: %w", c.ID, c.Phase, sandbox.ErrState)
		}
		thaw, err := s.Pods.Freeze(ctx, c.ID)
		if err != nil {
			return err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawLimit)
			defer cancel()
			if terr := thaw(ctx); terr != nil {
				err = errors.Join(err, fmt.Errorf("container %s is still frozen: %w", c.ID, terr))
			}
		}()
	}
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select { // criu is let go of with care, which takes a while
	case err := <-done:
		return err
	case <-time.After(leaveLimit):
		return context.Cause(ctx)
	}
}

// leaveLimit is how long what writes a checkpoint may take to end when its time is over.
const leaveLimit = 40 * time.Second

// capture writes a frozen container into dir.
func (s *Service) capture(ctx context.Context, c sandbox.ContainerStatus, dir checkpoint.Dir) error {
	images, err := s.Tools.Images(dir)
	if errors.Is(err, checkpoint.ErrNoCRIU) {
		return fmt.Errorf("%w: %w", sandbox.ErrUnavailable, err)
	}
	if err != nil {
		return err
	}
	at := time.Now()
	if err := s.Pods.Dump(ctx, c.ID, images); err != nil {
		return err
	}
	err = dir.WriteLayer(func(w io.Writer) error { return s.Images.WriteLayer(ctx, c.ID, w) })
	if err != nil {
		return err
	}
	err = dir.WriteVolumes(func(w io.Writer) error { return s.Images.WriteVolumes(ctx, c.ID, w) })
	if err != nil && !errors.Is(err, imagesvc.ErrNotFound) {
		return err
	}
	spec, err := s.Pods.Specification(c.ID)
	if err != nil {
		return err
	}
	pod, err := s.Pods.Pod(c.PodID)
	if err != nil {
		return err
	}
	return dir.Describe(checkpoint.Config{
		ID: c.ID, Name: c.Config.Name, RootfsImage: c.Config.ImageName, RootfsImageName: c.Config.ImageName, RootfsImageRef: c.ImageID,
		OCIRuntime: pod.Handler, CreatedTime: c.CreatedAt, CheckpointedAt: at,
	}, spec, c.StartedAt)
}
