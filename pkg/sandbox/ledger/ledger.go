// Package ledger keeps what is known of pods and containers. Reads are of memory and give copies; the records that it
// writes are for a restart. It decides nothing: package sandbox does, which changes statuses by functions that must not block.
package ledger

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/record"
	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/want"
)

// PodKey and ContainerKey name an attempt; at most one pod or container has it.
type PodKey struct {
	Name, Namespace, UID string
	Attempt              uint32
}

// ContainerKey is the like for a container.
type ContainerKey struct {
	PodID, Name string
	Attempt     uint32
}

// KeyOf is the attempt that is wanted.
func KeyOf(c want.Pod) PodKey { return PodKey{c.Name, c.Namespace, c.UID, c.Attempt} }

// Key is the attempt that the pod is.
func (p *PodStatus) Key() PodKey { return KeyOf(p.Config) }

// Key is the attempt that the container is.
func (c *ContainerStatus) Key() ContainerKey {
	return ContainerKey{c.PodID, c.Config.Name, c.Config.Attempt}
}

// Pod and Container are the owned, changing objects behind the copies that are served.
type Pod struct {
	slot
	// save is held while the record is written, so that an older state never overwrites a newer one.
	save   sync.Mutex
	status PodStatus // guarded by Ledger.mu
}

// Container is the like of Pod.
type Container struct {
	slot
	save   sync.Mutex
	exited chan struct{}
	// signaled tells that the stop signal was sent; guarded by Ledger.mu.
	signaled bool
	status   ContainerStatus // guarded by Ledger.mu
}

// Exited is closed when the container's process is known to be gone.
func (c *Container) Exited() <-chan struct{} { return c.exited }

// Ledger is the one owner of what is known of pods and containers.
type Ledger struct {
	podTable       *record.Table[PodStatus]
	containerTable *record.Table[ContainerStatus]

	mu         sync.RWMutex
	pods       map[string]*Pod
	podKeys    map[PodKey]string
	containers map[string]*Container
	ctrKeys    map[ContainerKey]string
}

// Open reads the records in the database, which stays the caller's. A record that cannot be read is logged: what it stood
// for is found and undone as a stray.
func Open(ctx context.Context, db *record.DB) (*Ledger, error) {
	pods, err := record.NewTable[PodStatus](ctx, db, "pods")
	if err != nil {
		return nil, fmt.Errorf("open pod records: %w", err)
	}
	containers, err := record.NewTable[ContainerStatus](ctx, db, "containers")
	if err != nil {
		return nil, fmt.Errorf("open container records: %w", err)
	}
	l := &Ledger{
		podTable: pods, containerTable: containers,
		pods: map[string]*Pod{}, podKeys: map[PodKey]string{},
		containers: map[string]*Container{}, ctrKeys: map[ContainerKey]string{},
	}
	return l, l.load(ctx)
}

// AddPod registers a pod, whose slot is then the caller's, and gives it SELinux labels. ErrExists: its attempt is taken.
// spec.ErrInvalid: the labels that it wants are not to be had.
func (l *Ledger) AddPod(st PodStatus) (*Pod, error) {
	var err error
	if st.Labels, err = confine.PodLabels(st.Config.SELinux); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p, err := l.putPod(st)
	if err != nil {
		l.releaseLevel(st)
		return nil, err
	}
	p.ops <- struct{}{}
	return p, nil
}

// putPod is AddPod without the lock and the slot.
func (l *Ledger) putPod(st PodStatus) (*Pod, error) {
	if id, ok := l.podKeys[st.Key()]; ok {
		return nil, fmt.Errorf("pod %s/%s attempt %d: %w as %s", st.Config.Namespace, st.Config.Name, st.Config.Attempt,
			ErrExists, id)
	}
	p := &Pod{slot: newSlot("pod " + st.ID), status: st}
	l.pods[st.ID] = p
	l.podKeys[st.Key()] = st.ID
	return p, nil
}

// AddContainer registers a container, whose slot is then the caller's; ErrExists if its attempt is taken, ErrState unless its
// pod is ready.
func (l *Ledger) AddContainer(st ContainerStatus) (*Container, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.pods[st.PodID]; p == nil || !p.status.Ready() {
		return nil, fmt.Errorf("pod %s is not ready: %w", st.PodID, ErrState)
	}
	c, err := l.putContainer(st)
	if err == nil {
		c.ops <- struct{}{}
	}
	return c, err
}

// putContainer is AddContainer without the lock and the slot, and for any pod.
func (l *Ledger) putContainer(st ContainerStatus) (*Container, error) {
	if id, ok := l.ctrKeys[st.Key()]; ok {
		return nil, fmt.Errorf("container %s attempt %d in pod %s: %w as %s", st.Config.Name, st.Config.Attempt, st.PodID,
			ErrExists, id)
	}
	c := &Container{slot: newSlot("container " + st.ID), exited: make(chan struct{}), status: st}
	if st.Phase.Terminal() {
		close(c.exited)
	}
	l.containers[st.ID] = c
	l.ctrKeys[st.Key()] = st.ID
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

// Pod resolves the ID of a pod or a unique prefix of one: ErrNotFound, ErrAmbiguous.
func (l *Ledger) Pod(id string) (*Pod, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return find("pod", id, l.pods)
}

// Container is the like of Pod for a container.
func (l *Ledger) Container(id string) (*Container, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return find("container", id, l.containers)
}

// PodStatus is the pod as it is now.
func (l *Ledger) PodStatus(p *Pod) PodStatus {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return p.status
}

// ContainerStatus is the container as it is now.
func (l *Ledger) ContainerStatus(c *Container) ContainerStatus {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return c.status
}

// PodByKey returns the pod that has an attempt, or nil.
func (l *Ledger) PodByKey(k PodKey) *Pod {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.pods[l.podKeys[k]]
}

// ContainerByKey returns the container that has an attempt, or nil.
func (l *Ledger) ContainerByKey(k ContainerKey) *Container {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.containers[l.ctrKeys[k]]
}

// Pods returns all pods, in no order.
func (l *Ledger) Pods() []PodStatus {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]PodStatus, 0, len(l.pods))
	for _, p := range l.pods {
		out = append(out, p.status)
	}
	return out
}

// Containers returns all containers, in no order.
func (l *Ledger) Containers() []ContainerStatus {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]ContainerStatus, 0, len(l.containers))
	for _, c := range l.containers {
		out = append(out, c.status)
	}
	return out
}

// ContainersOf returns the containers of a pod.
func (l *Ledger) ContainersOf(podID string) []*Container {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var out []*Container
	for _, c := range l.containers {
		if c.status.PodID == podID {
			out = append(out, c)
		}
	}
	return out
}

// UpdatePod changes a pod by fn, which must not block.
func (l *Ledger) UpdatePod(p *Pod, fn func(*PodStatus)) PodStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn(&p.status)
	return p.status
}

// UpdateContainer changes a container by fn, which must not block, and wakes who waits for its end.
func (l *Ledger) UpdateContainer(c *Container, fn func(*ContainerStatus)) ContainerStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := c.status.Phase
	fn(&c.status)
	if !was.Terminal() && c.status.Phase.Terminal() {
		close(c.exited)
	}
	return c.status
}

// ContainerCreated is UpdateContainer, in one step with the question whether the pod is still ready: a stop of the pod
// either is seen here or sees a created container. It tells whether fn was called.
func (l *Ledger) ContainerCreated(c *Container, fn func(*ContainerStatus)) bool {
	ready := false
	l.UpdateContainer(c, func(st *ContainerStatus) {
		if p := l.pods[st.PodID]; p != nil && p.status.Ready() {
			ready = true
			fn(st)
		}
	})
	return ready
}

// MarkSignaled notes whether the container has got its stop signal, and tells whether it was so before.
func (l *Ledger) MarkSignaled(c *Container, signaled bool) (before bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, c.signaled = c.signaled, signaled
	return before
}

// SavePod writes the pod's record as it is now.
func (l *Ledger) SavePod(ctx context.Context, p *Pod) error {
	p.save.Lock()
	defer p.save.Unlock()
	st := l.PodStatus(p)
	if l.PodByKey(st.Key()) != p {
		return nil // forgotten meanwhile: the record must not come back
	}
	if err := l.podTable.Put(ctx, st.ID, st); err != nil {
		return fmt.Errorf("record pod %s: %w", st.ID, err)
	}
	return nil
}

// SaveContainer writes the container's record as it is now.
func (l *Ledger) SaveContainer(ctx context.Context, c *Container) error {
	c.save.Lock()
	defer c.save.Unlock()
	st := l.ContainerStatus(c)
	if l.ContainerByKey(st.Key()) != c {
		return nil // forgotten meanwhile: the record must not come back
	}
	if err := l.containerTable.Put(ctx, st.ID, st); err != nil {
		return fmt.Errorf("record container %s: %w", st.ID, err)
	}
	return nil
}

// ForgetPod deletes the record, then the pod: the last step of its removal.
func (l *Ledger) ForgetPod(ctx context.Context, p *Pod) error {
	p.save.Lock()
	defer p.save.Unlock()
	st := l.PodStatus(p)
	if err := l.podTable.Delete(ctx, st.ID); err != nil {
		return fmt.Errorf("forget pod %s: %w", st.ID, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pods, st.ID)
	delete(l.podKeys, st.Key())
	l.releaseLevel(st)
	return nil
}

// ForgetContainer deletes the record, then the container: the last step of its removal.
func (l *Ledger) ForgetContainer(ctx context.Context, c *Container) error {
	c.save.Lock()
	defer c.save.Unlock()
	st := l.ContainerStatus(c)
	if err := l.containerTable.Delete(ctx, st.ID); err != nil {
		return fmt.Errorf("forget container %s: %w", st.ID, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.containers, st.ID)
	delete(l.ctrKeys, st.Key())
	return nil
}

// Load fills the state from the tables. A record that cannot be read is logged: what it stood for is found and undone
// as a stray.
func (l *Ledger) load(ctx context.Context) error {
	pods, err := l.podTable.Load(ctx)
	if err != nil {
		logrus.WithError(err).Error("some pod records cannot be read")
	}
	for _, st := range pods {
		if st.Phase == PodCreating || st.Config.Unfinished && st.Phase != PodStopped {
			st.Phase = PodRemoving // nobody goes on with it
		}
		l.mu.Lock()
		_, err := l.putPod(st)
		l.mu.Unlock()
		if err != nil {
			return fmt.Errorf("load pod records: %w", err)
		}
		st.Labels.Reserve()
	}
	containers, err := l.containerTable.Load(ctx)
	if err != nil {
		logrus.WithError(err).Error("some container records cannot be read")
	}
	for _, st := range containers {
		if st.Phase == ContainerCreating {
			st.Phase = ContainerRemoving
		}
		l.mu.Lock()
		_, err := l.putContainer(st)
		l.mu.Unlock()
		if err != nil {
			return fmt.Errorf("load container records: %w", err)
		}
	}
	return nil
}

// Now is the time as it is recorded: without the monotonic part, which does not survive a restart.
func Now() time.Time { return time.Now().Round(0) }
