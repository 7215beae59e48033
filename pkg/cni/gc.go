package cni

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// collectPlugins runs GC of the plugins of all networks but the built-in one: those that are configured, for the node or a
// handler, and those that pods are still attached to. Pods that are gone and stuck in their DEL are garbage. It goes past
// errors and joins them.
func (n *Network) collectPlugins(ctx context.Context, stuck []string) error {
	attached, damaged, err := n.attached()
	if err != nil {
		return err
	}
	lists := n.collectable(attached)
	if len(lists) == 0 {
		return nil
	}
	return n.turns.Collect(ctx, func(ctx context.Context) error {
		// Again: now no pod comes or goes.
		if attached, damaged, err = n.attached(); err != nil {
			return err
		}
		var errs []error
		for _, list := range lists {
			var valid []types.GCAttachment
			for _, a := range attached {
				if a.Network == list.Name && !slices.Contains(stuck, a.ID) {
					valid = append(valid, types.GCAttachment{ContainerID: a.ID, IfName: a.IfName})
				}
			}
			// A damaged record is of a pod that may be there, on any of its interfaces.
			for _, id := range damaged {
				for i := range max(len(lists), mostInterfaces) {
					valid = append(valid, types.GCAttachment{ContainerID: id, IfName: interfaceName(i)})
				}
			}
			errs = append(errs, n.chains.gc(ctx, list, valid))
		}
		return errors.Join(errs...)
	})
}

// mostInterfaces is how many a pod may have had that nobody knows of any more.
const mostInterfaces = 16

// attached are all attachments on record; damaged are the pods whose record cannot be read.
func (n *Network) attached() (all []attachment, damaged []string, err error) {
	ids, err := n.records.ids()
	for _, id := range ids {
		of, err := n.records.read(id)
		if err != nil {
			damaged = append(damaged, id)
		}
		all = append(all, of...)
	}
	return all, damaged, err
}

// collectable are the networks with a GC, each once. The node's configuration of a network counts before a handler's, and
// both before the one that a pod was attached with. That there is no network is for Ready to tell.
func (n *Network) collectable(attached []attachment) []*libcni.NetworkConfigList {
	var out []*libcni.NetworkConfigList
	seen := map[string]bool{builtinNetwork: true}
	add := func(list *libcni.NetworkConfigList) {
		if !seen[list.Name] && supportsGC(list) {
			out = append(out, list)
		}
		seen[list.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(n.places)) {
		lists, _ := n.places[name].networks()
		for _, list := range lists {
			add(list)
		}
	}
	for _, a := range attached {
		if list, err := a.list(); err == nil {
			add(list)
		}
	}
	return out
}
