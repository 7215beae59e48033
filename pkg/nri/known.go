package nri

import (
	"maps"
	"slices"
	"sync"

	"criserver/pkg/sandbox/ledger"
)

// life is how far a pod or container has come in the eyes of plugins.
type life struct {
	pod   string // of a container
	ended bool   // its stop has been told
}

// known is what plugins know: what was announced to them and not taken back. It keeps events of an end from being told twice, and
// events of what nobody was told of from being told at all.
type known struct {
	mu               sync.Mutex
	pods, containers map[string]life
}

func newKnown() *known { return &known{pods: map[string]life{}, containers: map[string]life{}} }

// load announces what was there before.
func (k *known) load(pods []ledger.PodStatus, containers []ledger.ContainerStatus) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range pods {
		k.pods[p.ID] = life{ended: p.Phase == ledger.PodStopped}
	}
	for _, c := range containers {
		k.containers[c.ID] = life{pod: c.PodID, ended: c.Phase == ledger.ContainerExited}
	}
}

// begin announces a pod, or, in pod, a container.
func (k *known) begin(id, pod string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if pod == "" {
		k.pods[id] = life{}
		return
	}
	k.containers[id] = life{pod: pod}
}

// alive tells whether a pod or container was announced, and its end was not.
func (k *known) alive(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	pod, isPod := k.pods[id]
	c, isContainer := k.containers[id]
	return isPod && !pod.ended || isContainer && !c.ended
}

// has tells whether a pod or container was announced and not taken back.
func (k *known) has(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, isPod := k.pods[id]
	_, isContainer := k.containers[id]
	return isPod || isContainer
}

// end notes that the end of a pod or container is told, and tells whether it was not so before.
func (k *known) end(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, all := range []map[string]life{k.pods, k.containers} {
		if l, ok := all[id]; ok && !l.ended {
			l.ended = true
			all[id] = l
			return true
		}
	}
	return false
}

// forget takes a pod or container back, and tells whether it was known.
func (k *known) forget(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := len(k.pods) + len(k.containers)
	delete(k.pods, id)
	delete(k.containers, id)
	return len(k.pods)+len(k.containers) < before
}

// aliveIn are the containers of a pod whose end was not told.
func (k *known) aliveIn(pod string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(k.containers)), func(id string) bool {
		return k.containers[id].pod != pod || k.containers[id].ended
	})
}
