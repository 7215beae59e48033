package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/want"
)

// checkpointLimit is how long a checkpoint may take whose caller does not say.
const checkpointLimit = 2 * time.Minute

// CheckpointContainer writes a running container into an archive at the absolute path location, where nothing may be: the state of
// its processes and what they have written. They are stopped meanwhile and go on then, whatever comes of it. A timeout of 0 is
// the default. ErrInvalid, ErrState: it does not run. ErrUnavailable: there is no criu. ErrTimeout.
func (s *Service) CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error {
	if !filepath.IsAbs(location) || filepath.Clean(location) != location {
		return fmt.Errorf("location: %w: %q is not an absolute, clean path", want.ErrInvalid, location)
	}
	if info, err := os.Stat(filepath.Dir(location)); err != nil || !info.IsDir() {
		return fmt.Errorf("location: %w: %s is not a directory", want.ErrInvalid, filepath.Dir(location))
	}
	if _, err := os.Lstat(location); err == nil {
		return fmt.Errorf("location: %s: %w", location, ErrExists)
	}
	c, err := s.ledger.Container(id)
	if err != nil {
		return err
	}
	if timeout == 0 {
		timeout = checkpointLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done after %s: %w", timeout, ErrTimeout))
	defer cancel()
	if err := s.checkpointContainer(ctx, c, location); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", s.ledger.ContainerStatus(c).ID, err)
	}
	logrus.WithFields(logrus.Fields{"container": s.ledger.ContainerStatus(c).ID, "location": location}).Info("container is checkpointed")
	return nil
}

func (s *Service) checkpointContainer(ctx context.Context, c *ledger.Container, location string) error {
	dir, err := checkpoint.MakeDir(s.config.Checkpoints.Root)
	if err != nil {
		return err
	}
	if err := s.capture(ctx, c, dir); err != nil {
		return errors.Join(err, dir.Remove())
	}
	packed := make(chan error, 1)
	go func() { // a disk that hangs holds up this goroutine and not the call
		packed <- errors.Join(dir.Pack(ctx, location), dir.Remove())
	}()
	select {
	case err := <-packed:
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w: %w", ErrExists, err)
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// capture writes a container into dir while its processes stand still.
func (s *Service) capture(ctx context.Context, c *ledger.Container, dir checkpoint.Dir) (err error) {
	st := s.ledger.ContainerStatus(c)
	if st.Phase != ContainerRunning {
		return fmt.Errorf("it is %s, not running: %w", st.Phase, ErrState)
	}
	thaw, err := s.Freeze(ctx, st.ID)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := detached(ctx)
		defer cancel()
		// Once more after a stop, which thaws too: criu leaves the cgroup as it was when it began.
		err = errors.Join(err, thaw(ctx), cgroup.Thaw(st.CgroupPath))
	}()
	return s.captureFrozen(ctx, st, dir)
}

func (s *Service) captureFrozen(ctx context.Context, st ContainerStatus, dir checkpoint.Dir) error {
	tools := s.config.Checkpoints
	images, err := tools.Images(dir)
	if errors.Is(err, checkpoint.ErrNoCRIU) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil {
		return err
	}
	at := time.Now()
	err = s.monitor.Dump(ctx, monitor.DumpRequest{ID: st.ID, To: images})
	if gone(err) {
		err = fmt.Errorf("%w: %w", ErrState, err)
	}
	if err != nil {
		return err
	}
	spec, err := os.ReadFile(filepath.Join(s.bundles.Dir(st.ID), "config.json"))
	if err != nil {
		return fmt.Errorf("read specification: %w", err)
	}
	err = dir.WriteLayer(func(w io.Writer) error { return tools.WriteLayer(ctx, st.ID, w) })
	if err != nil {
		return err
	}
	// criu leaves the cgroup as it was when it began.
	if frozen, err := cgroup.Frozen(st.CgroupPath); err != nil || !frozen {
		return errors.Join(fmt.Errorf("it was thawed meanwhile: %w", ErrState), err)
	}
	return dir.Describe(checkpoint.Config{
		ID: st.ID, Name: st.Config.Name, RootfsImage: st.Config.ImageName, RootfsImageName: st.Config.ImageName, RootfsImageRef: st.ImageID,
		OCIRuntime: s.handlerName(st.PodID), CreatedTime: st.CreatedAt, CheckpointedAt: at,
	}, spec, st.StartedAt)
}

// handlerName is the runtime handler of a pod.
func (s *Service) handlerName(podID string) string {
	p, err := s.ledger.Pod(podID)
	if err != nil {
		return ""
	}
	return s.ledger.PodStatus(p).Handler
}
