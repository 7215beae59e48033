package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

// A container that is restored is created as any other, but for its processes, which come with its start, the content of its
// writable layer, and what its specification says of its process. The checkpoint waits in a directory named by the container's ID.

// fillRestored returns what puts into a container's writable layer what it has written already, nil for one that is not restored.
func (s *Service) fillRestored(ctx context.Context, st ContainerStatus) func() error {
	if st.Config.Checkpoint == "" {
		return nil
	}
	return func() error {
		tools := s.config.Checkpoints
		dir := tools.Of(st.ID)
		if err := os.Rename(st.Config.Checkpoint, string(dir)); err != nil {
			return fmt.Errorf("take checkpoint: %w", err)
		}
		return invalidCheckpoint(dir.EachLayer(func(tar io.Reader) error { return tools.FillLayer(ctx, st.ID, tar) }))
	}
}

// fillVolumes returns what puts into a container's volumes what it had there, nil for one that is not restored.
func (s *Service) fillVolumes(ctx context.Context, st ContainerStatus) func() (bool, error) {
	if st.Config.Checkpoint == "" {
		return nil
	}
	return func() (bool, error) {
		tools := s.config.Checkpoints
		there, err := tools.Of(st.ID).Volumes(func(tar io.Reader) error { return tools.FillVolumes(ctx, st.ID, tar) })
		return there, invalidCheckpoint(err)
	}
}

// adaptRestored makes a specification that of the container that is restored, and tells who it runs as.
func (s *Service) adaptRestored(st ContainerStatus, out *specs.Spec) (spec.User, error) {
	var wanted []string
	for _, m := range st.Config.Mounts {
		wanted = append(wanted, m.Destination)
	}
	for _, v := range st.Config.Volumes {
		wanted = append(wanted, v.Destination)
	}
	if err := s.config.Checkpoints.Of(st.ID).Adapt(out, wanted, st.Config.MustMatch); err != nil {
		return spec.User{}, invalidCheckpoint(err)
	}
	u := out.Process.User
	return spec.User{UID: u.UID, GID: u.GID, AdditionalGIDs: u.AdditionalGids}, nil
}

// FinishPod says that all containers of a pod are made that was wanted unfinished. ErrState: it is not ready any more.
func (s *Service) FinishPod(ctx context.Context, id string) error {
	p, err := s.ledger.Pod(id)
	if err != nil {
		return err
	}
	if err := p.Acquire(ctx); err != nil {
		return err
	}
	defer p.Release()
	if st := s.ledger.PodStatus(p); !st.Ready() {
		return fmt.Errorf("pod %s is %s: %w", id, st.Phase, ErrState)
	}
	s.ledger.UpdatePod(p, func(st *PodStatus) { st.Config.Unfinished = false })
	return s.ledger.SavePod(ctx, p)
}

// createInit has crimonitor make a container, and returns the PID of its init, which one that is restored does not have yet.
func (s *Service) createInit(ctx context.Context, st ContainerStatus, r monitor.CreateRequest) (int, error) {
	if st.Config.Checkpoint == "" {
		return s.monitor.Create(ctx, r)
	}
	from, err := s.config.Checkpoints.Images(s.config.Checkpoints.Of(st.ID))
	if errors.Is(err, checkpoint.ErrNoCRIU) {
		return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil {
		return 0, err
	}
	return 0, s.monitor.Restore(ctx, monitor.RestoreRequest{CreateRequest: r, From: from})
}

// invalidCheckpoint says that a checkpoint which cannot be restored is a wrong request.
func invalidCheckpoint(err error) error {
	if errors.Is(err, checkpoint.ErrInvalid) {
		return fmt.Errorf("%w: %w", want.ErrInvalid, err)
	}
	return err
}
