package checkpoints

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/want"
)

// undoLimit is how long it may take to remove what a restore that failed has made.
const undoLimit = 2 * time.Minute

// PodContainer is a container that is restored with its pod.
type PodContainer struct {
	Config want.Container
	Image  want.Image
}

// RestorePod makes a pod and its containers of the checkpoint in the directory path, which is not changed, and returns their IDs, those
// of the containers in the order given. The containers are created; StartContainer restores their processes. They must be those of the
// checkpoint by name, and be what they were in all that a restore cannot change. After an error nothing is left, and of a daemon that
// dies in the middle the next one removes what there is. A call for a pod that was restored from path, and whose containers wait to be
// started, has its result again. ErrInvalid, and the errors of RunPod and CreateContainer; ErrExists: there is such a pod.
func (s *Service) RestorePod(ctx context.Context, path string, pod want.Pod, containers []PodContainer, options map[string]string) (string, []string, error) {
	if err := noOptions(options); err != nil {
		return "", nil, err
	}
	dirs, err := hostpath.Soon(ctx, s.Files.Asker, path, func() (map[string]checkpoint.Dir, error) { return s.podContainers(path, containers) })
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	// Its own, to be removed after an error: one that is there, or is being made, is somebody else's.
	key := ledger.KeyOf(pod)
	release, err := s.restoring.Acquire(ctx, fmt.Sprintf("%#v", key))
	if err != nil {
		return "", nil, err
	}
	defer release()
	podID, ids, err := s.former(ctx, key, path, containers)
	if err != nil || podID != "" {
		return podID, ids, err
	}
	pod.RestoredFrom, pod.Unfinished = path, true
	return s.restorePod(ctx, pod, containers, dirs)
}

// former deals with the pod that an earlier restore has made. It returns the IDs if that was just this one, "" if there is no such pod, or
// was one that was not finished, which is removed: nobody works on it, as the caller holds the claim.
func (s *Service) former(ctx context.Context, key ledger.PodKey, path string, containers []PodContainer) (string, []string, error) {
	for _, p := range s.Runner.Pods() {
		switch {
		case p.Key() != key:
			continue
		case p.Config.Unfinished:
			return "", nil, s.Runner.RemovePod(ctx, p.ID)
		}
		if ids := s.waiting(p, containers); p.Ready() && p.Config.RestoredFrom == path && ids != nil {
			return p.ID, ids, nil
		}
		return "", nil, fmt.Errorf("pod %s/%s attempt %d is there as %s: %w", key.Namespace, key.Name, key.Attempt, p.ID, sandbox.ErrExists)
	}
	return "", nil, nil
}

// waiting are the IDs of the containers of a pod that wait to be started; nil if they are not just those that are wanted.
func (s *Service) waiting(pod sandbox.PodStatus, containers []PodContainer) []string {
	found := map[string]sandbox.ContainerStatus{}
	for _, c := range s.Runner.Containers() {
		if c.PodID == pod.ID {
			found[c.Config.Name] = c
		}
	}
	if len(found) != len(containers) {
		return nil
	}
	var ids []string
	for _, want := range containers {
		c := found[want.Config.Name]
		if c.Phase != sandbox.ContainerCreated || c.Config.Attempt != want.Config.Attempt {
			return nil
		}
		ids = append(ids, c.ID)
	}
	return ids
}

func (s *Service) restorePod(ctx context.Context, pod want.Pod, containers []PodContainer, dirs map[string]checkpoint.Dir) (string, []string, error) {
	podID, err := s.Runner.RunPod(ctx, pod)
	if err != nil && ctx.Err() != nil { // it may be made all the same
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		if podID, late := s.Runner.RunPod(undo, pod); late == nil {
			err = errors.Join(err, s.Runner.RemovePod(undo, podID))
		}
	}
	if err != nil {
		return "", nil, err
	}
	ids, err := s.restoreAll(ctx, podID, containers, dirs)
	if err == nil {
		err = s.Runner.FinishPod(ctx, podID)
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		return "", nil, errors.Join(err, s.Runner.RemovePod(ctx, podID))
	}
	return podID, ids, nil
}

func (s *Service) restoreAll(ctx context.Context, podID string, containers []PodContainer, dirs map[string]checkpoint.Dir) (ids []string, err error) {
	for _, c := range containers {
		id, err := s.restoreInto(ctx, podID, c, dirs[c.Config.Name])
		if err != nil {
			return nil, fmt.Errorf("restore container %s: %w", c.Config.Name, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// podContainers finds the checkpoint of each container.
func (s *Service) podContainers(path string, containers []PodContainer) (map[string]checkpoint.Dir, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("checkpoint_path: %w: %q is not absolute", want.ErrInvalid, path)
	}
	dirs, err := checkpoint.PodIn(path).Containers()
	if err != nil {
		return nil, fmt.Errorf("checkpoint_path: %s: %w", path, err)
	}
	if len(containers) == 0 {
		return nil, fmt.Errorf("container_configs: %w: empty", want.ErrInvalid)
	}
	seen := map[string]bool{}
	for _, c := range containers {
		name := c.Config.Name
		switch {
		case seen[name]:
			return nil, fmt.Errorf("container_configs: %w: two have the name %q", want.ErrInvalid, name)
		case dirs[name] == "":
			return nil, fmt.Errorf("container_configs: %w: the checkpoint has no container %q", want.ErrInvalid, name)
		}
		seen[name] = true
		had, err := dirs[name].Config()
		if err != nil {
			return nil, fmt.Errorf("checkpoint_path: container %s: %w", name, err)
		}
		if had.RootfsImageRef != c.Image.ID {
			return nil, fmt.Errorf("container_configs: %w: image: container %s was of %s (%s), not %s", want.ErrInvalid, name,
				had.RootfsImageRef, had.RootfsImageName, c.Image.ID)
		}
	}
	for name := range dirs {
		if !seen[name] {
			return nil, fmt.Errorf("container_configs: %w: the checkpoint has a container %q too", want.ErrInvalid, name)
		}
	}
	return dirs, nil
}

// restoreInto creates a container in a pod, of a copy of its checkpoint: that is needed until the container is started.
func (s *Service) restoreInto(ctx context.Context, podID string, c PodContainer, from checkpoint.Dir) (string, error) {
	dir, err := checkpoint.StageDir(s.Tools.Root)
	if err != nil {
		return "", err
	}
	c.Config.Checkpoint, c.Config.MustMatch = string(dir), true
	_, err = hostpath.Ask(ctx, s.Files.Asker, string(from), func() (struct{}, error) { return struct{}{}, s.Images.CopyTree(ctx, string(from), string(dir)) })
	if err != nil {
		return "", errors.Join(fmt.Errorf("copy checkpoint: %w", err), dir.Remove())
	}
	id, err := s.Runner.CreateContainer(ctx, podID, c.Config, c.Image)
	return id, errors.Join(err, dir.Remove()) // it has been taken
}
