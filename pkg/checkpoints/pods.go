package checkpoints

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/want"
)

// CheckpointPod writes containers of a ready pod, all of which run, into the empty directory output, which is the caller's: all of
// one moment. They are stopped before the first is written, and go on, whatever comes of it, when all are. After an error output is
// empty. Without a deadline in ctx there is a default. Errors are those of CheckpointContainer.
func (s *Service) CheckpointPod(ctx context.Context, podID, output string, containerIDs []string, options map[string]string) error {
	if err := noOptions(options); err != nil {
		return err
	}
	pod, err := s.Pods.Pod(podID)
	if err != nil {
		return err
	}
	if !pod.Ready() {
		return fmt.Errorf("pod %s is %s: %w", pod.ID, pod.Phase, sandbox.ErrState)
	}
	if err := checkUsers(pod); err != nil {
		return err
	}
	containers, err := s.selected(pod, containerIDs)
	if err != nil {
		return err
	}
	if _, err := hostpath.Soon(ctx, s.Files.Asker, output, func() (struct{}, error) { return struct{}{}, checkOutput(output) }); err != nil {
		return err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	to := checkpoint.PodIn(output)
	claim, err := s.Tools.Claim(string(to))
	if err != nil {
		return err
	}
	if err = s.capturePod(ctx, containers, to); err == nil {
		err = claim.Release()
	}
	if err != nil {
		return fmt.Errorf("checkpoint pod %s: %w", pod.ID, errors.Join(err, claim.Remove()))
	}
	logrus.WithFields(logrus.Fields{"pod": pod.ID, "containers": len(containers), "output": output}).Info("pod is checkpointed")
	return nil
}

// noOptions refuses options: there are none.
func noOptions(options map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		return fmt.Errorf("options: %w: unknown option %q", want.ErrInvalid, key)
	}
	return nil
}

// selected are the containers that a checkpoint of a pod is to have.
func (s *Service) selected(pod sandbox.PodStatus, ids []string) ([]sandbox.ContainerStatus, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("container_ids: %w: empty", want.ErrInvalid)
	}
	var out []sandbox.ContainerStatus
	names := map[string]bool{}
	for _, id := range ids {
		c, err := s.Pods.Container(id)
		switch {
		case err != nil:
			return nil, fmt.Errorf("container_ids: %w", err)
		case c.PodID != pod.ID:
			return nil, fmt.Errorf("container_ids: %w: container %s is of pod %s", want.ErrInvalid, c.ID, c.PodID)
		case c.Phase != sandbox.ContainerRunning:
			return nil, fmt.Errorf("container_ids: container %s is %s, not running: %w", c.ID, c.Phase, sandbox.ErrState)
		case names[c.Config.Name]: // by which they are told apart when they are restored
			return nil, fmt.Errorf("container_ids: %w: %s is there twice", want.ErrInvalid, c.Config.Name)
		}
		names[c.Config.Name] = true
		out = append(out, c)
	}
	return out, nil
}

func checkOutput(output string) error {
	if !filepath.IsAbs(output) {
		return fmt.Errorf("output_path: %w: %q is not absolute", want.ErrInvalid, output)
	}
	entries, err := os.ReadDir(output)
	if err != nil {
		return fmt.Errorf("output_path: %w: %w", want.ErrInvalid, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("output_path: %w: %s is not empty, it has %s", want.ErrInvalid, output, entries[0].Name())
	}
	return nil
}

func (s *Service) capturePod(ctx context.Context, containers []sandbox.ContainerStatus, to checkpoint.Pod) error {
	dirs := map[string]checkpoint.Dir{}
	err := s.frozen(ctx, containers, func() error {
		for n, c := range containers {
			dir, err := to.Container(n)
			if err == nil {
				err = s.capture(ctx, c, dir)
			}
			if err != nil {
				return fmt.Errorf("container %s: %w", c.Config.Name, err)
			}
			dirs[c.Config.Name] = dir
		}
		return nil
	})
	if err != nil {
		return err
	}
	return to.Describe(dirs)
}
