package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/sirupsen/logrus"

	"criserver/pkg/cni"
	"criserver/pkg/flight"
	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/want"
)

// RunPod makes a pod and returns its ID. A call for the same attempt joins the one in flight, or gets the ID of the pod
// that it made. ErrInvalid: the configuration can never work. ErrState: the attempt's pod has been stopped already.
func (s *Service) RunPod(ctx context.Context, c want.Pod) (string, error) {
	if err := c.Check(); err != nil {
		return "", err
	}
	if err := s.config.CgroupDriver.CheckParent(c.CgroupParent); err != nil {
		return "", fmt.Errorf("linux.cgroup_parent: %w: %w", want.ErrInvalid, err)
	}
	if err := host.CheckPod(&c.Resources, &c.Overhead); err != nil {
		return "", err
	}
	key := ledger.KeyOf(c)
	return s.podFlights.Do(ctx, key, runPodLimit, func(ctx context.Context) (string, error) {
		if p := s.ledger.PodByKey(key); p != nil {
			st := s.ledger.PodStatus(p)
			if !st.Ready() {
				return "", fmt.Errorf("pod %s/%s attempt %d is %s as %s: %w; remove it or raise the attempt",
					c.Namespace, c.Name, c.Attempt, st.Phase, st.ID, ErrState)
			}
			return st.ID, nil
		}
		return s.runPod(ctx, c)
	})
}

// runPod is the way of a pod into life.
func (s *Service) runPod(ctx context.Context, c want.Pod) (string, error) {
	h, err := s.podHandler(ctx, c)
	if err != nil {
		return "", err
	}
	c.Sysctls = h.PodSysctls(c.Sysctls, c.Namespaces.Network == want.NamespacePod, c.Namespaces.IPC == want.NamespacePod)
	id := newID()
	st := PodStatus{ID: id, Config: c, Handler: h.Name, Phase: PodCreating, CreatedAt: ledger.Now(), CgroupPath: c.CgroupParent}
	if st.CgroupPath == "" {
		st.CgroupPath = s.config.CgroupDriver.PodPath(s.config.CgroupRoot, id)
	} else {
		st.CgroupMade = !cgroup.Exists(st.CgroupPath)
	}
	p, err := s.ledger.AddPod(st)
	if err != nil {
		return "", err
	}
	defer p.Release()
	log := logrus.WithFields(logrus.Fields{"pod": id, "name": c.Namespace + "/" + c.Name})
	if err := s.buildPod(ctx, p); err != nil {
		ctx, cancel := detached(ctx)
		defer cancel()
		if derr := s.destroyPod(ctx, p); derr != nil {
			log.WithError(derr).Error("cannot undo a pod that failed; it is tried again at removal or start")
		}
		return "", fmt.Errorf("run pod %s/%s: %w", c.Namespace, c.Name, err)
	}
	log.WithField("ips", s.ledger.PodStatus(p).IPs).Info("pod is ready")
	return id, nil
}

// buildPod makes everything that a pod is made of. destroyPod undoes it from any point.
func (s *Service) buildPod(ctx context.Context, p *ledger.Pod) error {
	st := s.ledger.PodStatus(p)
	cgroup.Warm()                                    // a container comes next
	if err := s.ledger.SavePod(ctx, p); err != nil { // the intent
		return err
	}
	if err := s.spaces.Make(ctx, st); err != nil {
		return err
	}
	ips := st.IPs
	if st.Config.Namespaces.Network == want.NamespacePod {
		flight.Stage(ctx, "its network is being set up")
		result, err := s.network.Setup(ctx, s.networkPod(st))
		if err != nil {
			return fmt.Errorf("set up network: %w", err)
		}
		ips = result.IPs
	}
	flight.Stage(ctx, "its cgroup is being made")
	if err := driver.Make(ctx, &s.parents, st.CgroupPath); err != nil {
		return err
	}
	if st.Config.Namespaces.PID == want.NamespacePod {
		if err := s.startPodInit(ctx, st); err != nil {
			return err
		}
	}
	st.IPs = ips
	if err := s.plugins.PodEvent(ctx, plugin.RunPod, st); err != nil {
		return err
	}
	cgroup.Warm()
	s.ledger.UpdatePod(p, func(st *PodStatus) { st.Phase, st.IPs = PodReady, ips })
	return s.ledger.SavePod(ctx, p)
}

// networkPod is the pod as the network knows it.
func (s *Service) networkPod(st PodStatus) cni.Pod {
	p := cni.Pod{
		ID: st.ID, Name: st.Config.Name, Namespace: st.Config.Namespace, UID: st.Config.UID, Handler: st.Handler,
		Annotations: st.Config.Annotations, Ports: st.Config.Ports, CgroupParent: st.CgroupPath,
		NetNS: s.spaces.NetNS(st.ID),
	}
	if st.Config.DNS != nil {
		p.DNS = *st.Config.DNS
	}
	return p
}

// StopPod kills the pod's containers and gives back its network. It is idempotent; an unknown pod is no error.
func (s *Service) StopPod(ctx context.Context, id string) error {
	return s.withPod(ctx, id, s.stopPod)
}

// withPod calls fn while it holds the pod's slot. It does nothing if there is no such pod.
func (s *Service) withPod(ctx context.Context, id string, fn func(context.Context, *ledger.Pod) error) error {
	p, err := s.ledger.Pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.Acquire(ctx); err != nil {
		return err
	}
	defer p.Release()
	return fn(ctx, p)
}

// stopPod needs the pod's slot. The phase changes first, so that no container is created in the pod from here on.
func (s *Service) stopPod(ctx context.Context, p *ledger.Pod) error {
	st := s.ledger.PodStatus(p)
	if st.Phase == PodStopped {
		return nil
	}
	if st.Phase == PodReady {
		s.ledger.UpdatePod(p, func(st *PodStatus) { st.Phase = PodStopping })
		if err := s.ledger.SavePod(ctx, p); err != nil {
			return err
		}
	}
	if err := s.killContainers(ctx, st.ID); err != nil {
		return fmt.Errorf("stop pod %s: %w", st.ID, err)
	}
	if err := s.releasePod(ctx, st); err != nil {
		return fmt.Errorf("stop pod %s: %w", st.ID, err)
	}
	s.ledger.UpdatePod(p, func(st *PodStatus) { st.Phase = PodStopped })
	logrus.WithField("pod", st.ID).Info("pod is stopped")
	return s.ledger.SavePod(ctx, p)
}

// killContainers kills all containers of a pod at once and waits for their ends.
func (s *Service) killContainers(ctx context.Context, podID string) error {
	containers := s.ledger.ContainersOf(podID)
	errs := make([]error, len(containers))
	var wg sync.WaitGroup
	for i, c := range containers {
		wg.Go(func() { errs[i] = s.killContainer(ctx, c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// releasePod gives back what a pod holds beside its containers and files. It is idempotent and goes past errors.
func (s *Service) releasePod(ctx context.Context, st PodStatus) error {
	errs := []error{s.plugins.PodEvent(ctx, plugin.StopPod, st)}
	if st.Config.Namespaces.PID == want.NamespacePod {
		errs = append(errs, s.stopPodInit(ctx, st.ID))
	}
	if st.Config.Namespaces.Network == want.NamespacePod && st.Phase != PodStopped {
		err := s.network.Teardown(ctx, s.networkPod(st))
		switch {
		case err != nil && st.Phase == PodRemoving && ctx.Err() == nil:
			// Stop fails, and is retried, while a plugin fails: it may be able to again soon. Removal has the last word,
			// or a plugin that is broken for good would keep the pod for ever. The network remembers what it could not
			// give back, and its GC goes on trying.
			logrus.WithError(err).WithField("pod", st.ID).Error("the pod is removed without all of its network: " +
				"its addresses and host ports may stay taken until garbage collection, at start and every hour, succeeds")
		case err != nil:
			errs = append(errs, fmt.Errorf("tear down network: %w", err))
		}
	}
	// Without its namespace a failed teardown could not be repeated in full.
	if errors.Join(errs...) == nil {
		errs = append(errs, s.spaces.Unpin(st.ID))
	}
	switch {
	case st.Config.CgroupParent == "":
		errs = append(errs, driver.Remove(ctx, st.CgroupPath))
	case st.CgroupMade:
		driver.Prune(ctx, &s.parents, st.CgroupPath)
	}
	return errors.Join(errs...)
}

// RemovePod stops a pod, removes its containers, and forgets it. It is idempotent; an unknown pod is no error.
func (s *Service) RemovePod(ctx context.Context, id string) error {
	return s.withPod(ctx, id, func(ctx context.Context, p *ledger.Pod) error {
		if err := s.destroyPod(ctx, p); err != nil {
			return fmt.Errorf("remove pod %s: %w", id, err)
		}
		logrus.WithField("pod", s.ledger.PodStatus(p).ID).Info("pod is removed")
		return nil
	})
}

// destroyPod undoes a pod from any point of its life; it needs the pod's slot. It is idempotent.
func (s *Service) destroyPod(ctx context.Context, p *ledger.Pod) error {
	st := s.ledger.PodStatus(p)
	if s.ledger.PodByKey(st.Key()) != p {
		return nil // removed while this call waited for the slot
	}
	s.ledger.UpdatePod(p, func(st *PodStatus) {
		if st.Phase != PodStopped { // a stopped pod's network is released: it must not be again
			st.Phase = PodRemoving
		}
	})
	var errs []error
	for _, c := range s.ledger.ContainersOf(st.ID) {
		errs = append(errs, s.removeContainer(ctx, c))
	}
	errs = append(errs, s.releasePod(ctx, s.ledger.PodStatus(p)), s.spaces.Remove(st.ID))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_ = s.plugins.PodEvent(ctx, plugin.RemovePod, st)
	return s.ledger.ForgetPod(ctx, p)
}
