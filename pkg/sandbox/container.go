package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"criserver/pkg/flight"
	"criserver/pkg/sandbox/bundle"
	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/want"
)

// CreateContainer makes a container in a ready pod, up to the point where its process waits for StartContainer, and
// returns its ID. A call for the same attempt joins the one in flight, or gets the ID of the container that it made.
func (s *Service) CreateContainer(ctx context.Context, podID string, c want.Container, img want.Image) (string, error) {
	p, err := s.ledger.Pod(podID)
	if err != nil {
		return "", err
	}
	st := s.ledger.PodStatus(p)
	if err := c.Check(st.Config); err != nil {
		return "", err
	}
	key := ledger.ContainerKey{PodID: st.ID, Name: c.Name, Attempt: c.Attempt}
	return s.containerFlights.Do(ctx, key, CreateContainerLimit, func(ctx context.Context) (string, error) {
		if old := s.ledger.ContainerByKey(key); old != nil {
			have := s.ledger.ContainerStatus(old)
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
	flight.Stage(ctx, "it is being recorded")
	cgroup.Warm()
	id := newID()
	st := ContainerStatus{
		ID: id, PodID: pod.ID, Config: c, ImageID: img.ID, ImageRef: img.Ref, Phase: ContainerCreating, CreatedAt: ledger.Now(),
		StopSignal: cmp.Or(c.StopSignal, img.Config.StopSignal, "SIGTERM"),
		CgroupPath: driver.ContainerPath(pod.CgroupPath, id),
	}
	if c.LogPath != "" && pod.Config.LogDirectory != "" {
		st.LogPath = filepath.Join(pod.Config.LogDirectory, c.LogPath)
	}
	ctr, err := s.ledger.AddContainer(st)
	if err != nil {
		return "", err
	}
	defer ctr.Release()
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
	return id, s.plugins.ContainerEvent(ctx, plugin.ContainerCreated, s.ledger.ContainerStatus(ctr))
}

// buildContainer makes everything that a container is made of. destroyContainer undoes it from any point.
func (s *Service) buildContainer(ctx context.Context, c *ledger.Container, pod PodStatus, img want.Image) error {
	st := s.ledger.ContainerStatus(c)
	if err := s.ledger.SaveContainer(ctx, c); err != nil { // the intent
		return err
	}
	h, err := s.containerHandler(ctx, pod)
	if err != nil {
		return err
	}
	mounts, err := s.resolveMounts(ctx, h, st.Config.Mounts)
	if err != nil {
		return err
	}
	labels, err := pod.Labels.ForContainer(ctx, st.Config.SELinux, mounts)
	if err != nil {
		return err
	}
	viewer := bundle.Viewer{Pod: s.spaces.Spec(pod), MountLabel: labels.Mount, Snapshotter: h.Snapshotter}
	flight.Stage(ctx, "its root file system is being mounted")
	if err := s.bundles.Make(ctx, st.ID, viewer, img.Layers, s.fillRestored(ctx, st)); err != nil {
		return err
	}
	volumes, err := s.bundles.MountVolumes(ctx, st.ID, viewer, st.Config.Volumes)
	if err != nil {
		return err
	}
	mounts = append(mounts, volumes...)
	if volumes, err = s.bundles.DeclareVolumes(ctx, st.ID, viewer, img, mounts, s.fillVolumes(ctx, st)); err != nil {
		return err
	}
	mounts = append(mounts, volumes...)
	pidMode, pidNS, err := s.pidNamespace(pod, st.Config.Namespaces)
	if err != nil {
		return err
	}
	defer pidNS.Close()
	user, err := s.writeBundle(ctx, st, pod, h, img, mounts, labels, pidMode, pidNS)
	if err != nil {
		return err
	}
	if st.LogPath != "" {
		dir := filepath.Dir(st.LogPath)
		if err := s.hostPaths.MakeDir(ctx, dir, func() { flight.Stage(ctx, "it waits for the log's directory "+dir) }); err != nil {
			return fmt.Errorf("log_path: %w", err)
		}
	}
	flight.Stage(ctx, "crimonitor sets it up")
	request := monitor.CreateRequest{
		ID: st.ID, Bundle: s.bundles.Dir(st.ID), LogPath: st.LogPath, Runtime: h.Command, Cgroup: s.ledger.ContainerStatus(c).CgroupPath,
		Stdin: st.Config.Stdin, StdinOnce: st.Config.StdinOnce,
		LogRate: s.config.LogRate, LogBurst: s.config.LogBurst,
	}
	if s.config.LogToJournal {
		request.Journal = ledger.JournalFields(st, pod)
	}
	pid, err := s.createInit(ctx, st, request)
	if err == nil && pid != 0 {
		err = pidNS.Check(pid)
	}
	if err != nil {
		return err
	}
	ready := s.ledger.ContainerCreated(c, func(st *ContainerStatus) {
		st.User = user
		if st.Phase == ContainerCreating { // else it has died already
			st.Phase, st.PID = ContainerCreated, pid
		}
	})
	if !ready {
		return fmt.Errorf("pod %s was stopped meanwhile: %w", pod.ID, ErrState)
	}
	return s.ledger.SaveContainer(ctx, c)
}

// StartContainer lets the workload of a created container go. On failure the container becomes exited with the reason
// StartError. ErrState: it is not in the state created.
func (s *Service) StartContainer(ctx context.Context, id string) error {
	c, err := s.ledger.Container(id)
	if err != nil {
		return err
	}
	if err := c.Acquire(ctx); err != nil {
		return err
	}
	defer c.Release()
	st := s.ledger.ContainerStatus(c)
	if st.Phase != ContainerCreated {
		return fmt.Errorf("container %s is %s, not created: %w", id, st.Phase, ErrState)
	}
	if st.Config.Checkpoint != "" { // which criu restores
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, restoreLimit)
		defer cancel()
	}
	err = s.plugins.ContainerEvent(ctx, plugin.StartContainer, st)
	var state monitor.State
	if err == nil {
		state, err = s.monitor.Start(ctx, st.ID)
	}
	if err != nil {
		ctx, cancel := detached(ctx)
		defer cancel()
		return errors.Join(fmt.Errorf("start container %s: %w", id, err), s.startFailed(ctx, c, err))
	}
	s.onRunning(c, state)
	if err := s.ledger.SaveContainer(ctx, c); err != nil {
		return err
	}
	if err := s.config.Checkpoints.Remove(st.ID); err != nil { // removal tries again
		logrus.WithError(err).WithField("container", st.ID).Warn("cannot remove the checkpoint that a container was restored from")
	}
	return s.plugins.ContainerEvent(ctx, plugin.ContainerStarted, s.ledger.ContainerStatus(c))
}

// startFailed kills a container that could not be started and tells why in its status.
func (s *Service) startFailed(ctx context.Context, c *ledger.Container, cause error) error {
	st := s.ledger.ContainerStatus(c)
	s.ledger.UpdateContainer(c, func(st *ContainerStatus) {
		if st.Phase.Terminal() {
			return
		}
		st.Phase, st.FinishedAt, st.PID = ContainerExited, ledger.Now(), 0
		st.ExitCode, st.Reason, st.Message = exitStartError, ReasonStartError, cause.Error()
	})
	return errors.Join(s.ledger.SaveContainer(ctx, c), s.plugins.ContainerEvent(ctx, plugin.StopContainer, s.ledger.ContainerStatus(c)),
		s.cleanContainer(ctx, st.ID))
}

// RemoveContainer kills a container if it runs, and forgets it. It is idempotent; an unknown container is no error.
func (s *Service) RemoveContainer(ctx context.Context, id string) error {
	c, err := s.ledger.Container(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.removeContainer(ctx, c)
}

func (s *Service) removeContainer(ctx context.Context, c *ledger.Container) error {
	st := s.ledger.ContainerStatus(c)
	// Killing first: an operation that holds the slot may wait for just that.
	if err := s.killContainer(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", st.ID, err)
	}
	if err := c.Acquire(ctx); err != nil {
		return err
	}
	defer c.Release()
	if err := s.destroyContainer(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", st.ID, err)
	}
	return nil
}

// destroyContainer undoes a container from any point of its life; it needs the container's slot. It is idempotent.
func (s *Service) destroyContainer(ctx context.Context, c *ledger.Container) error {
	st := s.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.Phase = ContainerRemoving })
	if s.ledger.ContainerByKey(st.Key()) != c {
		return nil // removed while this call waited for the slot
	}
	if err := errors.Join(s.plugins.ContainerEvent(ctx, plugin.RemoveContainer, st), s.destroyParts(ctx, st.ID)); err != nil {
		return err
	}
	if err := s.ledger.ForgetContainer(ctx, c); err != nil {
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
	return errors.Join(s.bundles.Remove(ctx, id), s.config.Checkpoints.Remove(id))
}

// cleanContainer releases what only a running container needs: processes, cgroup, runtime state, the mounts of its root and
// image volumes.
// It kills what still runs. It is idempotent.
func (s *Service) cleanContainer(ctx context.Context, id string) error {
	if err := s.monitor.Delete(ctx, id, s.bundles.Dir(id)); err != nil {
		return fmt.Errorf("delete from crimonitor: %w", err)
	}
	return s.bundles.Unmount(ctx, id)
}
