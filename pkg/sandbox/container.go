package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/want"
)

// CreateContainer makes a container in a ready pod, up to the point where its process waits for StartContainer, and
// returns its ID. A call for the same attempt joins the one in flight, or gets the ID of the container that it made.
func (s *Service) CreateContainer(ctx context.Context, podID string, c want.Container, img want.Image) (string, error) {
	p, err := s.state.pod(podID)
	if err != nil {
		return "", err
	}
	st := s.state.podStatus(p)
	if err := c.Check(st.Config); err != nil {
		return "", err
	}
	key := containerKey{st.ID, c.Name, c.Attempt}
	return s.containerFlights.Do(ctx, key, createContainerLimit, func(ctx context.Context) (string, error) {
		if old := s.state.containerByKey(key); old != nil {
			have := s.state.containerStatus(old)
			if have.Phase != ContainerCreated {
				return "", fmt.Errorf("container %s attempt %d is %s as %s: %w; remove it or raise the attempt",
					c.Name, c.Attempt, have.Phase, have.ID, ErrExists)
			}
			return have.ID, nil
		}
		return s.createContainer(ctx, st, c, img)
	})
}

func (s *Service) createContainer(ctx context.Context, pod PodStatus, c want.Container, img want.Image) (string, error) {
	cgroup.Warm()
	id := newID()
	st := ContainerStatus{
		ID: id, PodID: pod.ID, Config: c, ImageID: img.ID, ImageRef: img.Ref, Phase: ContainerCreating, CreatedAt: now(),
		StopSignal: cmp.Or(c.StopSignal, img.Config.StopSignal, "SIGTERM"),
		CgroupPath: filepath.Join(pod.CgroupPath, id),
	}
	if c.LogPath != "" && pod.Config.LogDirectory != "" {
		st.LogPath = filepath.Join(pod.Config.LogDirectory, c.LogPath)
	}
	ctr, err := s.state.addContainer(st)
	if err != nil {
		return "", err
	}
	ctr.ops <- struct{}{}
	defer release(ctr.ops)
	log := logrus.WithFields(logrus.Fields{"container": id, "pod": pod.ID, "name": c.Name})
	if err := s.buildContainer(ctx, ctr, pod, img); err != nil {
		ctx, cancel := detached(ctx)
		defer cancel()
		if derr := s.destroyContainer(ctx, ctr); derr != nil {
			log.WithError(derr).Error("cannot undo a container that failed; it is tried again at removal or start")
		}
		return "", fmt.Errorf("create container %s: %w", c.Name, err)
	}
	log.WithField("image", c.ImageName).Info("container is created")
	return id, nil
}

// buildContainer makes everything that a container is made of. destroyContainer undoes it from any point.
func (s *Service) buildContainer(ctx context.Context, c *container, pod PodStatus, img want.Image) error {
	st := s.state.containerStatus(c)
	if err := s.state.saveContainer(ctx, c); err != nil { // the intent
		return err
	}
	mounts, err := hostpath.Resolve(ctx, st.Config.Mounts)
	if err != nil {
		return err
	}
	if err := s.bundles.Make(ctx, st.ID, img.Layers); err != nil {
		return err
	}
	volumes, err := s.bundles.MountVolumes(ctx, st.ID, st.Config.Volumes)
	if err != nil {
		return err
	}
	mounts = append(mounts, volumes...)
	user, err := s.writeBundle(st, pod, img, mounts)
	if err != nil {
		return err
	}
	if st.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(st.LogPath), 0o755); err != nil {
			return fmt.Errorf("make log directory: %w", err)
		}
	}
	pid, err := s.monitor.Create(ctx, monitor.CreateRequest{
		ID: st.ID, Bundle: s.bundles.Dir(st.ID), LogPath: st.LogPath, Stdin: st.Config.Stdin, StdinOnce: st.Config.StdinOnce,
	})
	if err != nil {
		return err
	}
	ready := false
	s.state.updateContainer(c, func(st *ContainerStatus) {
		// One step with the change of the phase: a stop of the pod either is seen here or sees a created container.
		if p := s.state.pods[pod.ID]; p == nil || !p.status.ready() {
			return
		}
		ready = true
		st.User = user
		if st.Phase == ContainerCreating { // else it has died already
			st.Phase, st.PID = ContainerCreated, pid
		}
	})
	if !ready {
		return fmt.Errorf("pod %s was stopped meanwhile: %w", pod.ID, ErrState)
	}
	return s.state.saveContainer(ctx, c)
}

// StartContainer lets the workload of a created container go. On failure the container becomes exited with the reason
// StartError. ErrState: it is not in the state created.
func (s *Service) StartContainer(ctx context.Context, id string) error {
	c, err := s.state.container(id)
	if err != nil {
		return err
	}
	if err := acquire(ctx, c.ops, "container "+id); err != nil {
		return err
	}
	defer release(c.ops)
	st := s.state.containerStatus(c)
	if st.Phase != ContainerCreated {
		return fmt.Errorf("container %s is %s, not created: %w", id, st.Phase, ErrState)
	}
	state, err := s.monitor.Start(ctx, st.ID)
	if err != nil {
		ctx, cancel := detached(ctx)
		defer cancel()
		return errors.Join(fmt.Errorf("start container %s: %w", id, err), s.startFailed(ctx, c, err))
	}
	s.onRunning(c, state)
	return s.state.saveContainer(ctx, c)
}

// startFailed kills a container that could not be started and tells why in its status.
func (s *Service) startFailed(ctx context.Context, c *container, cause error) error {
	st := s.state.containerStatus(c)
	s.state.updateContainer(c, func(st *ContainerStatus) {
		if st.Phase.terminal() {
			return
		}
		st.Phase, st.FinishedAt, st.PID = ContainerExited, now(), 0
		st.ExitCode, st.Reason, st.Message = exitStartError, ReasonStartError, cause.Error()
	})
	return errors.Join(s.state.saveContainer(ctx, c), s.cleanContainer(ctx, st.ID))
}

// RemoveContainer kills a container if it runs, and forgets it. It is idempotent; an unknown container is no error.
func (s *Service) RemoveContainer(ctx context.Context, id string) error {
	c, err := s.state.container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.removeContainer(ctx, c)
}

func (s *Service) removeContainer(ctx context.Context, c *container) error {
	st := s.state.containerStatus(c)
	// Killing first: an operation that holds the slot may wait for just that.
	if st.Phase == ContainerCreated || st.Phase == ContainerRunning {
		if err := s.killContainer(ctx, c); err != nil {
			return fmt.Errorf("remove container %s: %w", st.ID, err)
		}
	}
	if err := acquire(ctx, c.ops, "container "+st.ID); err != nil {
		return err
	}
	defer release(c.ops)
	if err := s.destroyContainer(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", st.ID, err)
	}
	return nil
}

// destroyContainer undoes a container from any point of its life; it needs the container's slot. It is idempotent.
func (s *Service) destroyContainer(ctx context.Context, c *container) error {
	st := s.state.updateContainer(c, func(st *ContainerStatus) { st.Phase = ContainerRemoving })
	if s.state.containerByKey(st.key()) != c {
		return nil // removed while this call waited for the slot
	}
	if err := s.destroyParts(ctx, st.ID); err != nil {
		return err
	}
	if err := s.state.forgetContainer(ctx, c); err != nil {
		return err
	}
	logrus.WithField("container", st.ID).Info("container is removed")
	return nil
}

// destroyParts removes all that a container is made of beside its record.
func (s *Service) destroyParts(ctx context.Context, id string) error {
	if err := s.cleanContainer(ctx, id); err != nil {
		return err
	}
	return s.bundles.Remove(ctx, id)
}

// cleanContainer releases what only a running container needs: processes, cgroup, runtime state, the mounts of its root and
// image volumes.
// It kills what still runs. It is idempotent.
func (s *Service) cleanContainer(ctx context.Context, id string) error {
	if err := s.monitor.Delete(ctx, id, s.bundles.Dir(id)); err != nil {
		return fmt.Errorf("delete from crimonitor: %w", err)
	}
	return s.bundles.Unmount(id)
}
