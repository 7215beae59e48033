package cni

import (
	"context"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/sirupsen/logrus"
)

// watch keeps Network.Ready up to date.
type watch struct {
	network *Network
	list    *libcni.NetworkConfigList // that of the last look
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
		list, _ := w.network.configs.current()
		if list == nil || list != w.list || time.Since(w.last) >= interval {
			w.look(ctx)
		}
	}
}

// look asks the network once, and repairs the built-in one.
func (w *watch) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	n := w.network
	list, err := n.configs.current()
	w.list, w.last = list, time.Now()
	if err == nil {
		if err = n.chains.status(ctx, list); err != nil {
			err = fmt.Errorf("%w: %w", ErrNotReady, err)
		}
	}
	n.setReady(err)
	if b := n.builtin; b.unusable == nil && len(b.bridge.Pods()) > 0 {
		if err := b.bridge.Repair(ctx); err != nil && ctx.Err() == nil {
			logrus.WithError(err).Error("cannot repair the built-in network")
		}
	}
}

func (n *Network) setReady(err error) {
	n.mu.Lock()
	former := n.ready
	n.ready = err
	n.mu.Unlock()
	switch {
	case err == nil && former != nil:
		logrus.Info("network is ready")
	case err != nil && (former == nil || former.Error() != err.Error()):
		logrus.WithError(err).Warn("pods cannot be set up")
	}
}
