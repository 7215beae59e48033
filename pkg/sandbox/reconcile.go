package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/bundle"
	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/netcare"
	"criserver/pkg/sandbox/want"
)

// expected are the containers and pod inits that a crimonitor must know now.
func (s *Service) expected() map[string]struct{} {
	ids := map[string]struct{}{}
	for _, c := range s.ledger.Containers() {
		if c.Phase == ContainerCreated || c.Phase == ContainerRunning {
			ids[c.ID] = struct{}{}
		}
	}
	for _, p := range s.ledger.Pods() {
		if p.Phase == PodReady && p.Config.Namespaces.PID == want.NamespacePod {
			ids[podInitID(p.ID)] = struct{}{}
		}
	}
	return ids
}

// reconcile brings records and reality together after a watch began: containers that are missing are lost, what is left
// half-made is undone. Each piece has its own goroutine and deadline, so that one that hangs holds up nothing. At the
// first time it also finds what belongs to no record.
func (s *Service) reconcile(ctx context.Context, expected map[string]struct{}, seen map[string]monitor.State) {
	var repairs sync.WaitGroup
	for id := range expected {
		if _, ok := seen[id]; ok {
			continue
		}
		if c, err := s.ledger.Container(id); err == nil {
			repairs.Go(func() { s.onLost(ctx, c) })
		} else if p := s.podOfInit(id); p != nil {
			repairs.Go(func() { s.onPodInitExit(ctx, p) })
		}
	}
	s.setMonitorError(nil)
	select {
	case <-s.synced:
		return
	default:
	}
	s.freezer().ThawAll(ctx)
	s.limiter().UndoAll(ctx)
	s.repairFirst(ctx, &repairs, seen)
	close(s.synced)
	s.background.Go(func() {
		repairs.Wait()
		s.collectGarbage(ctx)
		s.netcare().Run(ctx)
	})
}

// repairFirst starts the repairs of what the last daemon left.
func (s *Service) repairFirst(ctx context.Context, repairs *sync.WaitGroup, seen map[string]monitor.State) {
	for _, st := range s.ledger.Pods() {
		p, err := s.ledger.Pod(st.ID)
		if err != nil {
			continue
		}
		switch {
		case st.Phase == PodRemoving:
			repairs.Go(func() { s.repairPod(ctx, p, s.destroyPod) })
		case st.Phase == PodStopping, st.Phase == PodReady && !s.spaces.Intact(st):
			s.ledger.UpdatePod(p, func(st *PodStatus) { st.Phase = PodStopping })
			repairs.Go(func() { s.repairPod(ctx, p, s.stopPod) })
		}
	}
	for _, st := range s.ledger.Containers() {
		c, err := s.ledger.Container(st.ID)
		if err != nil {
			continue
		}
		switch st.Phase {
		case ContainerRemoving:
			repairs.Go(func() { s.repairContainer(ctx, c) })
		case ContainerExited:
			if _, held := seen[st.ID]; held || s.bundles.Mounted(st.ID) {
				repairs.Go(func() { s.settle(ctx, c) })
			}
		}
	}
	for id := range seen {
		if _, err := s.ledger.Container(id); err != nil && s.podOfInit(id) == nil {
			repairs.Go(func() { s.removeStray(ctx, id) })
		}
	}
}

func (s *Service) repairPod(ctx context.Context, p *ledger.Pod, repair func(context.Context, *ledger.Pod) error) {
	ctx, cancel := context.WithTimeout(ctx, cleanupLimit)
	defer cancel()
	id := s.ledger.PodStatus(p).ID
	err := p.Acquire(ctx)
	if err == nil {
		defer p.Release()
		err = repair(ctx, p)
	}
	if err != nil {
		logrus.WithError(err).WithField("pod", id).Error("cannot repair a pod; its removal tries again")
	}
}

func (s *Service) repairContainer(ctx context.Context, c *ledger.Container) {
	ctx, cancel := context.WithTimeout(ctx, cleanupLimit)
	defer cancel()
	id := s.ledger.ContainerStatus(c).ID
	err := c.Acquire(ctx)
	if err == nil {
		defer c.Release()
		err = s.destroyContainer(ctx, c)
	}
	if err != nil {
		logrus.WithError(err).WithField("container", id).Error("cannot undo a container; its removal tries again")
	}
}

// removeStray removes what is left of a container without a record.
func (s *Service) removeStray(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, cleanupLimit)
	defer cancel()
	if err := s.destroyParts(ctx, id); err != nil {
		logrus.WithError(err).WithField("container", id).Error("cannot remove a container that has no record")
		return
	}
	logrus.WithField("container", id).Warn("removed a container that had no record")
}

// podOfInit returns the pod whose process 1 has the ID, or nil.
func (s *Service) podOfInit(id string) *ledger.Pod {
	podID, ok := strings.CutSuffix(id, podInitID(""))
	if !ok {
		return nil
	}
	p, err := s.ledger.Pod(podID)
	if err != nil {
		return nil
	}
	return p
}

// onPodInitExit is the event of process 1 of a shared PID namespace having ended: every container in it died with it,
// and none can be made any more.
func (s *Service) onPodInitExit(ctx context.Context, p *ledger.Pod) {
	if st := s.ledger.PodStatus(p); st.Phase == PodReady {
		logrus.WithField("pod", st.ID).Warn("the pod's init process ended; the pod is stopped")
		s.repairPod(ctx, p, s.stopPod)
	}
}

// collectGarbage removes what belongs to no record: there is something only if records were lost. It runs once, after
// the repairs, when every new thing has a record from before it is made.
func (s *Service) collectGarbage(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanupLimit)
	defer cancel()
	// Names first, records after: what is made in between has a record by then.
	bundles, _ := os.ReadDir(s.bundles.Root)
	podDirs, _ := os.ReadDir(s.spaces.Root)
	above := s.config.CgroupDriver.PodsPath(s.config.CgroupRoot)
	cgroups, _ := cgroup.Children(above)
	snapshots, err := s.bundles.Snapshots.Snapshots(ctx)
	if err != nil {
		logrus.WithError(err).Error("cannot list snapshots")
	}
	pods, containers := map[string]struct{}{}, map[string]struct{}{}
	for _, p := range s.ledger.Pods() {
		pods[p.ID] = struct{}{}
	}
	for _, c := range s.ledger.Containers() {
		containers[c.ID] = struct{}{}
	}
	for _, e := range bundles {
		snapshots = append(snapshots, e.Name())
	}
	for _, key := range snapshots {
		id := bundle.Owner(key)
		if _, ok := containers[id]; !ok {
			s.removeStray(ctx, id)
		}
	}
	for _, e := range podDirs {
		if _, ok := pods[e.Name()]; !ok {
			s.removeStrayPod(ctx, e.Name())
		}
	}
	for _, name := range cgroups {
		id := s.config.CgroupDriver.PodOf(s.config.CgroupRoot, name)
		if _, ok := pods[id]; !ok && len(id) == idLength {
			if err := driver.Remove(ctx, filepath.Join(above, name)); err != nil {
				logrus.WithError(err).Error("cannot remove the cgroup of a pod that has no record")
			}
		}
	}
	s.netcare().Collect(ctx)
}

func (s *Service) netcare() netcare.Care {
	return netcare.Care{Network: s.network, Ledger: s.ledger, CheckEvery: s.config.CheckNetwork}
}

// removeStrayPod removes what is left of a pod without a record. Its network is given back by the network's GC.
func (s *Service) removeStrayPod(ctx context.Context, id string) {
	st := PodStatus{ID: id, Phase: PodStopped, CgroupPath: s.config.CgroupDriver.PodPath(s.config.CgroupRoot, id)}
	st.Config.Namespaces.PID = want.NamespacePod
	err := s.releasePod(ctx, st)
	if err == nil {
		err = s.spaces.Remove(id)
	}
	if err != nil {
		logrus.WithError(err).WithField("pod", id).Error("cannot remove a pod that has no record")
		return
	}
	logrus.WithField("pod", id).Warn("removed a pod that had no record")
}
