package cni

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// watch keeps what is known of the networks up to date.
type watch struct {
	network *Network
	last    time.Time
}

func (w *watch) run(ctx context.Context) {
	interval := w.network.config.StatusInterval
	ticker := time.NewTicker(min(interval, configInterval))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if w.changed() || time.Since(w.last) >= interval {
			w.look(ctx)
		}
	}
}

func (w *watch) changed() bool {
	for _, p := range w.network.places {
		if p.changed() {
			return true
		}
	}
	return false
}

// look asks all networks once, and repairs the built-in one.
func (w *watch) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	n := w.network
	w.last = time.Now()
	var looks sync.WaitGroup
	for _, p := range n.places {
		looks.Go(func() { p.look(ctx, n.chains) })
	}
	looks.Wait()
	if b := n.builtin; b.unusable == nil && len(b.bridge.Pods()) > 0 {
		if err := b.bridge.Repair(ctx); err != nil && ctx.Err() == nil {
			logrus.WithError(err).Error("cannot repair the built-in network")
		}
	}
}
