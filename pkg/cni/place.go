package cni

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/sirupsen/logrus"

	"criserver/pkg/cni/confdir"
)

// place is where networks of pods come from: the node's directory, or that of a runtime handler.
type place struct {
	handler string // "" for the node's
	dir     *confdir.Dir

	mu     sync.Mutex
	looked []*libcni.NetworkConfigList // what ready is about; nil if that could not be told
	ready  error
}

// newPlaces are the node's, under "", and the handlers'. The built-in network is there for the node alone: a directory that
// somebody has named for a handler, and that is empty, is a mistake.
func newPlaces(c Config) (map[string]*place, error) {
	node := &place{dir: &confdir.Dir{Path: c.ConfDir, Max: max(c.Networks, 0), Check: checkTogether}}
	switch {
	case c.Template != "":
		node.dir.Empty = "; the template " + c.Template + " waits for the pod CIDR, which the kubelet tells"
	case c.Builtin.Disabled:
		node.dir.Empty = ", and the built-in network is off"
	default:
		var err error
		if node.dir.Fallback, err = builtinList(); err != nil {
			return nil, err
		}
	}
	all := map[string]*place{"": node}
	for name, h := range c.Handlers {
		p := &place{handler: name, dir: &confdir.Dir{Path: h.ConfDir, Max: max(cmp.Or(h.Networks, c.Networks), 0), Check: checkTogether}}
		if h.ConfDir == "" || h.ConfDir == c.ConfDir {
			p.dir.Path, p.dir.Fallback, p.dir.Empty = c.ConfDir, node.dir.Fallback, node.dir.Empty
		}
		all[name] = p
	}
	return all, nil
}

// checkTogether refuses the built-in network twice: it knows a pod by its id alone.
func checkTogether(lists []*libcni.NetworkConfigList) error {
	var other string
	for _, list := range lists {
		for _, plugin := range list.Plugins {
			if plugin.Network.Type != builtinType {
				continue
			}
			if other != "" {
				return fmt.Errorf("networks %s and %s both have the plugin %s, which a pod can be attached to once", other, list.Name, builtinType)
			}
			other = list.Name
		}
	}
	return nil
}

// of is the place of a handler's networks.
func (n *Network) of(handler string) *place {
	if p := n.places[handler]; p != nil {
		return p
	}
	return n.places[""]
}

// networks are those that a pod gets that is set up now.
func (p *place) networks() ([]*libcni.NetworkConfigList, error) {
	lists, err := p.dir.Networks()
	if err != nil {
		return nil, p.notReady(err)
	}
	return lists, nil
}

func (p *place) notReady(err error) error {
	if p.handler != "" {
		return fmt.Errorf("%w: runtime handler %s: %w", ErrNotReady, p.handler, err)
	}
	return fmt.Errorf("%w: %w", ErrNotReady, err)
}

// usable are the networks for a pod. Of the node's the kubelet is told whether they are ready, and knows what to start
// meanwhile; of a handler's it is not, so their pods fail with the reason.
func (p *place) usable() ([]*libcni.NetworkConfigList, error) {
	lists, err := p.networks()
	if err != nil || p.handler == "" {
		return lists, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready != nil && slices.Equal(lists, p.looked) {
		return nil, p.ready
	}
	return lists, nil
}

// look asks all networks of the place how they are.
func (p *place) look(ctx context.Context, c *chains) {
	lists, err := p.networks()
	if err == nil {
		if err = c.statusOf(ctx, lists); err != nil {
			err = p.notReady(err)
		}
	}
	p.mu.Lock()
	former := p.ready
	p.looked, p.ready = lists, err
	p.mu.Unlock()
	log := logrus.NewEntry(logrus.StandardLogger())
	if p.handler != "" {
		log = log.WithField("handler", p.handler)
	}
	switch {
	case err == nil && former != nil:
		log.Info("network is ready")
	case err != nil && (former == nil || former.Error() != err.Error()):
		log.WithError(err).Warn("pods cannot be set up")
	}
}

// changed tells whether the directory names other networks than at the last look, or names none.
func (p *place) changed() bool {
	lists, _ := p.dir.Networks()
	p.mu.Lock()
	defer p.mu.Unlock()
	return lists == nil || !slices.Equal(lists, p.looked)
}

func (p *place) state() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ready
}

// statusOf asks the networks at the same time, as one that hangs uses up all of the time that there is.
func (c *chains) statusOf(ctx context.Context, lists []*libcni.NetworkConfigList) error {
	errs := make([]error, len(lists))
	var asked sync.WaitGroup
	for i, list := range lists {
		asked.Go(func() { errs[i] = c.status(ctx, list) })
	}
	asked.Wait()
	var all error
	for _, err := range errs {
		switch {
		case err != nil && all != nil:
			all = fmt.Errorf("%w; %w", all, err) // one line: it is a condition's message
		case err != nil:
			all = err
		}
	}
	return all
}
