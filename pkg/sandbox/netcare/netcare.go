// Package netcare takes care of the network of pods off their way: what is garbage is given back from time to time, and pods are looked at.
package netcare

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/cni"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/want"
)

// Network is what is needed of the network; see cni.Network for the contracts.
type Network interface {
	GC(ctx context.Context, live []string) error
	Check(ctx context.Context, p cni.Pod) error
}

const (
	// gcInterval is the time between two collections of garbage: of what plugins that failed, or were cut off, left behind.
	gcInterval = time.Hour
	// gcLimit is how long one may take.
	gcLimit = 2 * time.Minute
	// checkLimit is how long the check of one pod may take, which a stop of it waits for, and checksAtOnce how many run at one time.
	checkLimit   = 10 * time.Second
	checksAtOnce = 4
)

// Care takes care of the network of the pods in a ledger.
type Care struct {
	Network Network
	Ledger  *ledger.Ledger
	// CheckEvery is the time between two checks of all pods; 0 is never.
	CheckEvery time.Duration
}

// Run works until ctx ends.
func (c Care) Run(ctx context.Context) {
	collect := time.NewTicker(gcInterval)
	defer collect.Stop()
	var check <-chan time.Time
	if c.CheckEvery > 0 {
		ticker := time.NewTicker(c.CheckEvery)
		defer ticker.Stop()
		check = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-collect.C:
			limited, cancel := context.WithTimeout(ctx, gcLimit)
			c.Collect(limited)
			cancel()
		case <-check:
			c.checkAll(ctx)
		}
	}
}

// Collect gives back what is of no pod.
func (c Care) Collect(ctx context.Context) {
	if err := c.Network.GC(ctx, c.live()); err != nil {
		logrus.WithError(err).Error("cannot give back all of the network")
	}
}

// live are the pods whose network is theirs.
func (c Care) live() []string {
	var ids []string
	for _, p := range c.Ledger.Pods() {
		if p.Phase != ledger.PodStopped {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// checkAll looks whether the network of each ready pod is as it was made, and tells in the log where it is not. That is all: what to do
// about it, the plugins' error says to people.
func (c Care) checkAll(ctx context.Context) {
	places := make(chan struct{}, checksAtOnce)
	var checks sync.WaitGroup
	defer checks.Wait()
	for _, p := range c.Ledger.Pods() {
		if !p.Ready() || p.Config.Namespaces.Network != want.NamespacePod {
			continue
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		checks.Go(func() {
			defer func() { <-places }()
			c.check(ctx, p)
		})
	}
}

func (c Care) check(ctx context.Context, st ledger.PodStatus) {
	limited, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	err := c.Network.Check(limited, cni.Pod{ID: st.ID})
	p, gone := c.Ledger.Pod(st.ID)
	if err == nil || ctx.Err() != nil || gone != nil || !c.Ledger.PodStatus(p).Ready() {
		return // it may have been stopped meanwhile
	}
	logrus.WithError(err).WithFields(logrus.Fields{"pod": st.ID, "name": st.Config.Namespace + "/" + st.Config.Name}).
		Warn("the pod's network is not as it was made")
}
