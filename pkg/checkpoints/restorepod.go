package checkpoints

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/checkpoint"
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
// checkpoint by name, and be what they were in all that a restore cannot change. After an error nothing is left.
// ErrInvalid, and the errors of RunPod and CreateContainer; ErrExists: there is such a pod.
func (s *Service) RestorePod(ctx context.Context, path string, pod want.Pod, containers []PodContainer, options map[string]string) (string, []string, error) {
	if err := noOptions(options); err != nil {
		return "", nil, err
	}
	dirs, err := s.podContainers(path, containers)
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
	for _, p := range s.Runner.Pods() {
		if p.Key() == key {
			return "", nil, fmt.Errorf("pod %s/%s attempt %d is there as %s: %w", pod.Namespace, pod.Name, pod.Attempt, p.ID, sandbox.ErrExists)
		}
	}
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
	var ids []string
	for _, c := range containers {
		id, err := s.restoreInto(ctx, podID, c, dirs[c.Config.Name])
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
			defer cancel()
			return "", nil, errors.Join(fmt.Errorf("restore container %s: %w", c.Config.Name, err), s.Runner.RemovePod(ctx, podID))
		}
		ids = append(ids, id)
	}
	return podID, ids, nil
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
	if err = s.Images.CopyTree(ctx, string(from), string(dir)); err != nil {
		return "", errors.Join(fmt.Errorf("copy checkpoint: %w", err), dir.Remove())
	}
	id, err := s.Runner.CreateContainer(ctx, podID, c.Config, c.Image)
	return id, errors.Join(err, dir.Remove()) // it has been taken
}
