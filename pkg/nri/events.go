package nri

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/status"

	"criserver/pkg/nri/adjust"
	"criserver/pkg/nri/translate"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/spec"
)

// tellLimit is how long an operation may be held up by plugins that are told of what has happened, and cannot refuse it.
const tellLimit = 30 * time.Second

// send has fn send an event when it is its turn, while no plugin is being synchronized.
func (p *Plugins) send(ctx context.Context, event string, fn func() error) error {
	if err := p.take(ctx); err != nil {
		return fmt.Errorf("%s: %w", event, err)
	}
	defer p.release()
	// Its lock knows no context, but is held no longer than a plugin may take to answer.
	block := p.adaptation.BlockPluginSync()
	defer block.Unblock()
	return refusal(ctx, event, fn())
}

// refusal is the error of plugins. It must not look like one of the runtime's own: a plugin may return any status.
func refusal(ctx context.Context, event string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: NRI plugins have not answered: %w", event, context.Cause(ctx))
	}
	text := err.Error()
	if st, ok := status.FromError(err); ok {
		text = st.Message()
	}
	return fmt.Errorf("%s: %w: %s", event, plugin.ErrRefused, text)
}

// tell sends an event that cannot be refused.
func (p *Plugins) tell(ctx context.Context, event, id string, fn func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	if err := p.send(ctx, event, func() error { return fn(ctx) }); err != nil {
		logrus.WithError(err).WithField("id", id).Error("NRI plugins were not all told")
	}
}

// PodEvent implements plugin.Plugins.
func (p *Plugins) PodEvent(ctx context.Context, e plugin.Event, st ledger.PodStatus) error {
	switch e {
	case plugin.RunPod:
		return p.send(ctx, "RunPodSandbox", func() error {
			p.known.begin(st.ID, "")
			return p.adaptation.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: p.pod(st)})
		})
	case plugin.PodUpdated:
		p.tell(ctx, "PostUpdatePodSandbox", st.ID, func(ctx context.Context) error {
			if !p.known.alive(st.ID) {
				return nil
			}
			return p.adaptation.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: p.pod(st)})
		})
	case plugin.StopPod:
		if p.known.alive(st.ID) {
			p.tell(ctx, "StopPodSandbox", st.ID, func(ctx context.Context) error { return p.stopPod(ctx, st) })
		}
	case plugin.RemovePod:
		if p.known.has(st.ID) {
			p.tell(ctx, "RemovePodSandbox", st.ID, func(ctx context.Context) error {
				err := p.stopPod(ctx, st)
				if p.known.forget(st.ID) {
					err = errors.Join(err, p.adaptation.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: p.pod(st)}))
				}
				return err
			})
		}
	}
	return nil
}

// stopPod tells of the end of a pod once, and of that of its containers before. The turn is held.
func (p *Plugins) stopPod(ctx context.Context, st ledger.PodStatus) error {
	var errs []error
	for _, id := range p.known.aliveIn(st.ID) {
		c, err := p.runtime.Container(id)
		if err != nil {
			c = ledger.ContainerStatus{ID: id, PodID: st.ID, Phase: ledger.ContainerRemoving}
		}
		errs = append(errs, p.stopContainer(ctx, c))
	}
	if p.known.end(st.ID) {
		errs = append(errs, p.adaptation.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: p.pod(st)}))
	}
	return errors.Join(errs...)
}

// ContainerEvent implements plugin.Plugins.
func (p *Plugins) ContainerEvent(ctx context.Context, e plugin.Event, st ledger.ContainerStatus) error {
	// alive is an event of a container whose end was not told: one may have come in between.
	alive := func(ctx context.Context, event string, fn func(context.Context, *api.PodSandbox, *api.Container) error) {
		p.tell(ctx, event, st.ID, func(ctx context.Context) error {
			if !p.known.alive(st.ID) {
				return nil
			}
			return fn(ctx, p.podOf(st), p.container(st))
		})
	}
	switch e {
	case plugin.ContainerCreated:
		alive(ctx, "PostCreateContainer", func(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
			return p.adaptation.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: c})
		})
	case plugin.StartContainer:
		return p.send(ctx, "StartContainer", func() error {
			return p.adaptation.StartContainer(ctx, &api.StartContainerRequest{Pod: p.podOf(st), Container: p.container(st)})
		})
	case plugin.ContainerStarted:
		alive(ctx, "PostStartContainer", func(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
			return p.adaptation.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: c})
		})
	case plugin.ContainerUpdated:
		alive(ctx, "PostUpdateContainer", func(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
			return p.adaptation.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: c})
		})
	case plugin.StopContainer:
		if p.known.alive(st.ID) {
			p.tell(ctx, "StopContainer", st.ID, func(ctx context.Context) error { return p.stopContainer(ctx, st) })
		}
	case plugin.RemoveContainer:
		if p.known.has(st.ID) {
			p.tell(ctx, "RemoveContainer", st.ID, func(ctx context.Context) error { return p.removeContainer(ctx, st) })
		}
	}
	return nil
}

// stopContainer tells of the end of a container once. The turn is held.
func (p *Plugins) stopContainer(ctx context.Context, st ledger.ContainerStatus) error {
	if !p.known.end(st.ID) {
		return nil
	}
	r, err := p.adaptation.StopContainer(ctx, &api.StopContainerRequest{Pod: p.podOf(st), Container: p.container(st)})
	if err != nil {
		return err
	}
	p.updates.add(r.GetUpdate()) // nobody waits: the caller may hold a slot that they need
	return nil
}

// removeContainer tells once that a container is no more. The turn is held.
func (p *Plugins) removeContainer(ctx context.Context, st ledger.ContainerStatus) error {
	err := p.stopContainer(ctx, st)
	if !p.known.forget(st.ID) {
		return err
	}
	return errors.Join(err, p.adaptation.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: p.podOf(st), Container: p.container(st)}))
}

// UpdatePod implements plugin.Plugins.
func (p *Plugins) UpdatePod(ctx context.Context, st ledger.PodStatus, overhead, resources *spec.Resources) error {
	r := &api.UpdatePodSandboxRequest{}
	if overhead != nil {
		r.OverheadLinuxResources = translate.FromResources(*overhead)
	}
	if resources != nil {
		r.LinuxResources = translate.FromResources(*resources)
	}
	return p.send(ctx, "UpdatePodSandbox", func() error {
		r.Pod = p.pod(st)
		_, err := p.adaptation.UpdatePodSandbox(ctx, r)
		return err
	})
}

// CreateContainer implements plugin.Plugins. What plugins want of other containers is done, or has failed, when it returns.
func (p *Plugins) CreateContainer(ctx context.Context, st ledger.ContainerStatus, s *specs.Spec) (spec.Resources, error) {
	var answer *api.CreateContainerResponse
	var updated *job
	c := translate.Container(st, s)
	err := p.send(ctx, "CreateContainer", func() error {
		p.known.begin(st.ID, st.PodID)
		var err error
		answer, err = p.adaptation.CreateContainer(ctx, &api.CreateContainerRequest{Pod: p.podOf(st), Container: c})
		if err == nil {
			updated = p.updates.add(answer.GetUpdate())
		}
		return err
	})
	if err != nil {
		return st.Config.Resources, err
	}
	if err := updated.wait(ctx); err != nil {
		return st.Config.Resources, err
	}
	limits, err := adjust.Spec(ctx, s, answer.GetAdjust(), c, st.Config.Resources, p.config.CDISpecDirs)
	if err != nil {
		return limits, fmt.Errorf("CreateContainer: adjustment: %w: %w", plugin.ErrRefused, err)
	}
	return limits, nil
}

// UpdateContainer implements plugin.Plugins. What plugins want of other containers is done, or has failed, when it returns.
func (p *Plugins) UpdateContainer(ctx context.Context, st ledger.ContainerStatus, change spec.Resources) (spec.Resources, error) {
	var own *api.LinuxResources
	var updated *job
	err := p.send(ctx, "UpdateContainer", func() error {
		answer, err := p.adaptation.UpdateContainer(ctx, &api.UpdateContainerRequest{
			Pod: p.podOf(st), Container: p.container(st), LinuxResources: translate.FromResources(change),
		})
		if err != nil {
			return err
		}
		var others []*api.ContainerUpdate
		for _, u := range answer.GetUpdate() {
			switch u.GetContainerId() {
			case "": // no plugin wants anything of this container
			case st.ID:
				own = u.GetLinux().GetResources()
			default:
				others = append(others, u)
			}
		}
		updated = p.updates.add(others)
		return nil
	})
	if err == nil {
		err = updated.wait(ctx)
	}
	if err != nil {
		return change, err
	}
	if own != nil {
		score := change.OOMScoreAdj
		change = changeOf(st.ID, own)
		change.OOMScoreAdj = score
	}
	return change, nil
}

func (p *Plugins) pod(st ledger.PodStatus) *api.PodSandbox {
	return translate.Pod(st, p.runtime.PodNamespaces(st.ID))
}

// podOf is the pod of a container; of one that is gone the ID is left.
func (p *Plugins) podOf(c ledger.ContainerStatus) *api.PodSandbox {
	st, err := p.runtime.Pod(c.PodID)
	if err != nil {
		st = ledger.PodStatus{ID: c.PodID}
	}
	return p.pod(st)
}

// container is a container with its specification, if that is still there.
func (p *Plugins) container(st ledger.ContainerStatus) *api.Container {
	s, err := p.runtime.ContainerSpec(st.ID)
	if err != nil {
		s = nil // it went with a reboot, or was never written
	}
	return translate.Container(st, s)
}
