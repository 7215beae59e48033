package nri

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"

	"criserver/pkg/nri/translate"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/spec"
)

// updateLimit is how long one update of a container may take: what holds the container up may hold it for long.
const updateLimit = 10 * time.Second

// queue has updates of containers made in the order in which plugins have asked for them: of two that concern the same CPUs the
// later one must win.
type queue struct {
	mu   sync.Mutex
	jobs []*job
	wake chan struct{}
}

// job are the updates that one event brought.
type job struct {
	updates []*api.ContainerUpdate
	done    chan struct{} // closed when failed is set
	failed  []*api.ContainerUpdate
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

// add never blocks.
func (q *queue) add(updates []*api.ContainerUpdate) *job {
	j := &job{updates: updates, done: make(chan struct{})}
	if len(updates) == 0 {
		close(j.done)
		return j
	}
	q.mu.Lock()
	q.jobs = append(q.jobs, j)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return j
}

// wait waits until the updates are made or have failed.
func (j *job) wait(ctx context.Context) error {
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("updates of containers that NRI plugins ask for are not made yet: %w", context.Cause(ctx))
	}
}

// work makes the updates until ctx ends; those that are left then fail.
func (q *queue) work(ctx context.Context, update func(context.Context, *api.ContainerUpdate) error) {
	for {
		q.mu.Lock()
		jobs := q.jobs
		q.jobs = nil
		q.mu.Unlock()
		for _, j := range jobs {
			for _, u := range j.updates {
				if err := update(ctx, u); err != nil {
					j.failed = append(j.failed, u)
				}
			}
			close(j.done)
		}
		if len(jobs) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}

// update makes one update. Errors are logged: the plugin has been answered, unless it waits for this.
func (p *Plugins) update(ctx context.Context, u *api.ContainerUpdate) error {
	log := logrus.WithField("container", u.GetContainerId())
	ctx, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	err := p.limit(ctx, u)
	switch {
	case err == nil:
		log.Debug("a container was updated for an NRI plugin")
	case u.GetIgnoreFailure():
		log.WithError(err).Info("a container cannot be updated as an NRI plugin wants, which it says does not matter")
	default:
		log.WithError(err).Warn("a container cannot be updated as an NRI plugin wants")
	}
	return err
}

// named is the container that a plugin means: plugins have whole IDs, and beginnings of them name nothing.
func (p *Plugins) named(id string) (ledger.ContainerStatus, error) {
	st, err := p.runtime.Container(id)
	if err == nil && st.ID != id {
		err = fmt.Errorf("container %s: %w", id, ledger.ErrNotFound)
	}
	return st, err
}

func (p *Plugins) limit(ctx context.Context, u *api.ContainerUpdate) error {
	st, err := p.named(u.GetContainerId())
	if err != nil {
		return err
	}
	if st.Phase == ledger.ContainerCreating { // its slot is held by who may wait for this
		return fmt.Errorf("container %s is being made: %w", st.ID, ledger.ErrState)
	}
	return p.runtime.LimitContainer(ctx, st.ID, changeOf(st.ID, u.GetLinux().GetResources()))
}

// changeOf is what of an update can be made. The rest is logged.
func changeOf(id string, r *api.LinuxResources) spec.Resources {
	if fixed := translate.Fixed(r); len(fixed) > 0 {
		logrus.WithFields(logrus.Fields{"container": id, "left_out": strings.Join(fixed, ", ")}).
			Warn("an NRI plugin wants to update of a container what cannot change while it exists")
	}
	return translate.ToResources(r)
}

// unsolicited makes the updates that a plugin asks for by itself, and returns those that have failed.
func (p *Plugins) unsolicited(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	j := p.updates.add(updates)
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	if err := j.wait(ctx); err != nil {
		return nil, err
	}
	return j.failed, nil
}

// synchronize tells a plugin of what is there, by send. No event is sent meanwhile.
func (p *Plugins) synchronize(ctx context.Context, send adaptation.SyncCB) error {
	var pods []*api.PodSandbox
	for _, st := range p.runtime.Pods() {
		if p.known.has(st.ID) {
			pods = append(pods, p.pod(st))
		}
	}
	var containers []*api.Container
	for _, st := range p.runtime.Containers() {
		if !p.known.alive(st.ID) {
			continue
		}
		c := p.container(st)
		if st.Phase == ledger.ContainerCreating { // others were asked to adjust it, and PostCreateContainer comes
			c.State = api.ContainerState_CONTAINER_CREATED
		}
		containers = append(containers, c)
	}
	slices.SortFunc(pods, func(a, b *api.PodSandbox) int { return strings.Compare(a.Id, b.Id) })
	slices.SortFunc(containers, func(a, b *api.Container) int { return strings.Compare(a.Id, b.Id) })
	updates, err := send(ctx, pods, containers)
	if err != nil {
		return err
	}
	p.updates.add(updates) // nobody waits: events do, and with them who may hold up a container
	return nil
}
