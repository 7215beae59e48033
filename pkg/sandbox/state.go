package sandbox

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/record"
)

// podKey and containerKey name an attempt; at most one pod or container has it.
type podKey struct {
	name, namespace, uid string
	attempt              uint32
}

type containerKey struct {
	podID, name string
	attempt     uint32
}

func (p *PodStatus) key() podKey {
	return podKey{p.Config.Name, p.Config.Namespace, p.Config.UID, p.Config.Attempt}
}

func (c *ContainerStatus) key() containerKey {
	return containerKey{c.PodID, c.Config.Name, c.Config.Attempt}
}

// pod and container are the owned, changing objects behind the copies that are served.
type pod struct {
	// ops is held by the one run, stop or remove under way.
	ops chan struct{}
	// save is held while the record is written, so that an older state never overwrites a newer one.
	save   sync.Mutex
	status PodStatus // guarded by state.mu
}

type container struct {
	ops  chan struct{}
	save sync.Mutex
	// exited is closed when the container's process is known to be gone.
	exited chan struct{}
	// signaled tells that the stop signal was sent; guarded by state.mu.
	signaled bool
	status   ContainerStatus // guarded by state.mu
}

// state is the one owner of what is known of pods and containers. Reads come from memory; the tables are for restart.
type state struct {
	podTable       *record.Table[PodStatus]
	containerTable *record.Table[ContainerStatus]

	mu         sync.RWMutex
	pods       map[string]*pod
	podKeys    map[podKey]string
	containers map[string]*container
	ctrKeys    map[containerKey]string
}

func newState(pods *record.Table[PodStatus], containers *record.Table[ContainerStatus]) *state {
	return &state{
		podTable: pods, containerTable: containers,
		pods: map[string]*pod{}, podKeys: map[podKey]string{},
		containers: map[string]*container{}, ctrKeys: map[containerKey]string{},
	}
}

// addPod registers a pod; ErrExists if its attempt is taken.
func (s *state) addPod(st PodStatus) (*pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, ok := s.podKeys[st.key()]; ok {
		return nil, fmt.Errorf("pod %s/%s attempt %d: %w as %s", st.Config.Namespace, st.Config.Name, st.Config.Attempt,
			ErrExists, id)
	}
	p := &pod{ops: make(chan struct{}, 1), status: st}
	s.pods[st.ID] = p
	s.podKeys[st.key()] = st.ID
	return p, nil
}

// addContainer registers a container; ErrExists if its attempt is taken, ErrState unless its pod is ready.
func (s *state) addContainer(st ContainerStatus) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pods[st.PodID]; p == nil || !p.status.ready() {
		return nil, fmt.Errorf("pod %s is not ready: %w", st.PodID, ErrState)
	}
	return s.putContainer(st)
}

// putContainer is addContainer without the lock and for any pod.
func (s *state) putContainer(st ContainerStatus) (*container, error) {
	if id, ok := s.ctrKeys[st.key()]; ok {
		return nil, fmt.Errorf("container %s attempt %d in pod %s: %w as %s", st.Config.Name, st.Config.Attempt, st.PodID,
			ErrExists, id)
	}
	c := &container{ops: make(chan struct{}, 1), exited: make(chan struct{}), status: st}
	if st.Phase.terminal() {
		close(c.exited)
	}
	s.containers[st.ID] = c
	s.ctrKeys[st.key()] = st.ID
	return c, nil
}

// find resolves an ID or a unique prefix of one.
func find[T any](kind, id string, all map[string]T) (T, error) {
	var found T
	if v, ok := all[id]; ok {
		return v, nil
	}
	n := 0
	if id != "" {
		for full, v := range all {
			if strings.HasPrefix(full, id) {
				found = v
				n++
			}
		}
	}
	switch n {
	case 0:
		return found, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
	case 1:
		return found, nil
	}
	var none T
	return none, fmt.Errorf("%s %q: %w: %d fit", kind, id, ErrAmbiguous, n)
}

func (s *state) pod(id string) (*pod, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return find("pod", id, s.pods)
}

func (s *state) container(id string) (*container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return find("container", id, s.containers)
}

func (s *state) podStatus(p *pod) PodStatus {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return p.status
}

func (s *state) containerStatus(c *container) ContainerStatus {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return c.status
}

// podByKey returns the pod that has an attempt, or nil.
func (s *state) podByKey(k podKey) *pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pods[s.podKeys[k]]
}

func (s *state) containerByKey(k containerKey) *container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.containers[s.ctrKeys[k]]
}

func (s *state) listPods() []PodStatus {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]PodStatus, 0, len(s.pods))
	for _, p := range s.pods {
		out = append(out, p.status)
	}
	return out
}

func (s *state) listContainers() []ContainerStatus {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]ContainerStatus, 0, len(s.containers))
	for _, c := range s.containers {
		out = append(out, c.status)
	}
	return out
}

// containersOf returns the containers of a pod.
func (s *state) containersOf(podID string) []*container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*container
	for _, c := range s.containers {
		if c.status.PodID == podID {
			out = append(out, c)
		}
	}
	return out
}

// updatePod changes a pod by fn, which must not block.
func (s *state) updatePod(p *pod, fn func(*PodStatus)) PodStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&p.status)
	return p.status
}

// updateContainer changes a container by fn, which must not block, and wakes who waits for its end.
func (s *state) updateContainer(c *container, fn func(*ContainerStatus)) ContainerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := c.status.Phase
	fn(&c.status)
	if !was.terminal() && c.status.Phase.terminal() {
		close(c.exited)
	}
	return c.status
}

// savePod writes the pod's record as it is now.
func (s *state) savePod(ctx context.Context, p *pod) error {
	p.save.Lock()
	defer p.save.Unlock()
	st := s.podStatus(p)
	if s.podByKey(st.key()) != p {
		return nil // forgotten meanwhile: the record must not come back
	}
	if err := s.podTable.Put(ctx, st.ID, st); err != nil {
		return fmt.Errorf("record pod %s: %w", st.ID, err)
	}
	return nil
}

func (s *state) saveContainer(ctx context.Context, c *container) error {
	c.save.Lock()
	defer c.save.Unlock()
	st := s.containerStatus(c)
	if s.containerByKey(st.key()) != c {
		return nil // forgotten meanwhile: the record must not come back
	}
	if err := s.containerTable.Put(ctx, st.ID, st); err != nil {
		return fmt.Errorf("record container %s: %w", st.ID, err)
	}
	return nil
}

// forgetPod deletes the record, then the pod: the last step of its removal.
func (s *state) forgetPod(ctx context.Context, p *pod) error {
	p.save.Lock()
	defer p.save.Unlock()
	st := s.podStatus(p)
	if err := s.podTable.Delete(ctx, st.ID); err != nil {
		return fmt.Errorf("forget pod %s: %w", st.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, st.ID)
	delete(s.podKeys, st.key())
	return nil
}

func (s *state) forgetContainer(ctx context.Context, c *container) error {
	c.save.Lock()
	defer c.save.Unlock()
	st := s.containerStatus(c)
	if err := s.containerTable.Delete(ctx, st.ID); err != nil {
		return fmt.Errorf("forget container %s: %w", st.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, st.ID)
	delete(s.ctrKeys, st.key())
	return nil
}

// load fills the state from the tables. A record that cannot be read is logged: what it stood for is found and undone
// as a stray.
func (s *state) load(ctx context.Context) error {
	pods, err := s.podTable.Load(ctx)
	if err != nil {
		logrus.WithError(err).Error("some pod records cannot be read")
	}
	for _, st := range pods {
		if st.Phase == PodCreating {
			st.Phase = PodRemoving // nobody goes on with it
		}
		if _, err := s.addPod(st); err != nil {
			return fmt.Errorf("load pod records: %w", err)
		}
	}
	containers, err := s.containerTable.Load(ctx)
	if err != nil {
		logrus.WithError(err).Error("some container records cannot be read")
	}
	for _, st := range containers {
		if st.Phase == ContainerCreating {
			st.Phase = ContainerRemoving
		}
		s.mu.Lock()
		_, err := s.putContainer(st)
		s.mu.Unlock()
		if err != nil {
			return fmt.Errorf("load container records: %w", err)
		}
	}
	return nil
}

// acquire takes the operation slot of a pod or container.
func acquire(ctx context.Context, ops chan struct{}, what string) error {
	select {
	case ops <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s has another operation under way: %w", what, context.Cause(ctx))
	}
}

func release(ops chan struct{}) { <-ops }

// now is the time as it is recorded: without the monotonic part, which does not survive a restart.
func now() time.Time { return time.Now().Round(0) }
