package sandbox

import (
	"context"
	"errors"
	"fmt"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/specfile"
)

// Dump has the state of the processes of a container written down, which Freeze has stopped. It returns only once nobody works on
// them and on the images any more. ErrState: they do not run, or were let go meanwhile.
func (s *Service) Dump(ctx context.Context, id string, to runtime.Images) error {
	c, err := s.ledger.Container(id)
	if err != nil {
		return err
	}
	st := s.ledger.ContainerStatus(c)
	err = s.monitor.Dump(ctx, monitor.DumpRequest{ID: st.ID, To: to})
	if gone(err) {
		err = fmt.Errorf("%w: %w", ErrState, err)
	}
	// criu leaves the cgroup as it was when it began: frozen, unless somebody has stopped the container meanwhile.
	if !s.ledger.ContainerStatus(c).Frozen {
		return errors.Join(fmt.Errorf("container %s was thawed meanwhile: %w", id, ErrState), err, cgroup.Thaw(st.CgroupPath))
	}
	if err != nil {
		return err
	}
	if frozen, err := cgroup.Frozen(st.CgroupPath); err != nil || !frozen {
		return errors.Join(fmt.Errorf("container %s was thawed meanwhile: %w", id, ErrState), err)
	}
	return nil
}

// Specification is the OCI specification of a container, in JSON.
func (s *Service) Specification(id string) ([]byte, error) {
	return specfile.Read(s.bundles.Dir(id))
}
