package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/sirupsen/logrus"

	"criserver/pkg/cni/netns"
)

// chains runs plugin chains. It does what libcni's CNIConfig does, which it uses, except for DEL and GC: there libcni
// stops at the first plugin that fails or is missing, and what the others hold is leaked.
type chains struct {
	*libcni.CNIConfig
	exec    invoke.Exec
	binDirs []string
}

func newChains(binDirs []string, cacheDir string, exec invoke.Exec) *chains {
	return &chains{libcni.NewCNIConfigWithCacheDir(binDirs, cacheDir, exec), exec, binDirs}
}

// add runs ADD and returns the addresses of the pod's interface. After an error del is due.
func (c *chains) add(ctx context.Context, a attachment) (Result, error) {
	list, err := a.list()
	if err != nil {
		return Result{}, err
	}
	raw, err := c.AddNetworkList(ctx, list, a.runtimeConf())
	if err != nil {
		return Result{}, fmt.Errorf("add pod to network %s: %w", a.Network, err)
	}
	return podResult(raw, a.Network, a.IfName)
}

// podResult picks the addresses of a pod's interface. Only the first one must have any: the others may be for other
// protocols, or have addresses that the workload gives them.
func podResult(raw types.Result, network, ifName string) (Result, error) {
	if raw == nil {
		return Result{}, fmt.Errorf("network %s returned no result", network)
	}
	full, err := types100.NewResultFromResult(raw)
	if err != nil {
		return Result{}, fmt.Errorf("read result of network %s: %w", network, err)
	}
	var out Result
	for _, ip := range full.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(full.Interfaces) {
			if iface := full.Interfaces[*i]; iface.Sandbox == "" || iface.Name != ifName {
				continue
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out.IPs = append(out.IPs, a.Unmap())
		}
	}
	if len(out.IPs) == 0 && ifName == InterfaceName {
		return Result{}, fmt.Errorf("network %s gave the pod no address", network)
	}
	return out, nil
}

// delLimit and gcLimit are the most that a plugin gets for a DEL, and for its GC.
const (
	delLimit = 30 * time.Second
	gcLimit  = time.Minute
)

// del takes a pod down from its networks, the last one first, and returns those that it is still attached to after an
// error. A network whose plugins fail or hang keeps no other one from its DEL.
func (c *chains) del(ctx context.Context, all []attachment) (left []attachment, err error) {
	plugins := 0
	for _, a := range all {
		plugins += len(a.Plugins)
	}
	var errs []error
	for _, a := range slices.Backward(all) {
		if err := c.delNetwork(ctx, a, plugins); err != nil {
			left = append([]attachment{a}, left...)
			errs = append(errs, err)
		}
		plugins -= len(a.Plugins)
	}
	return left, errors.Join(errs...)
}

// delNetwork runs DEL of every plugin, last first, each with the result of ADD; without the namespace if that is gone. It
// goes past a plugin that fails, and past one that hangs, at a deadline of its own: the IPAM plugin's turn comes last. left
// is how many plugins of the pod are to run within the caller's time, with those of this network.
//
// A plugin that is not installed any more is no error: no retry can run it, and the pod would stay for ever. That differs
// from one that fails, which may work again once what it needs does, and whose error is the caller's to retry.
func (c *chains) delNetwork(ctx context.Context, a attachment, left int) error {
	list, err := a.list()
	if err != nil {
		return err
	}
	rt := a.runtimeConf()
	if !netns.Exists(rt.NetNS) {
		rt.NetNS = ""
	}
	inject := map[string]any{}
	if result := c.cachedResult(list, rt); result != nil {
		inject["prevResult"] = result
	}
	var errs []error
	for _, plugin := range slices.Backward(list.Plugins) {
		left--
		if _, err := c.exec.FindInPath(plugin.Network.Type, c.binDirs); err != nil {
			logrus.WithError(err).WithFields(logrus.Fields{"pod": a.ID, "network": a.Network}).Warn("a plugin that connected " +
				"the pod is gone: what it made outside of the pod's namespace, such as addresses, rules and routes, may be left")
			continue
		}
		if err := c.delOne(ctx, left+1, list, plugin, inject, rt); err != nil {
			errs = append(errs, fmt.Errorf("delete pod from network %s: plugin %s: %w", a.Network, plugin.Network.Type, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	// libcni forgets the cached result with a chain that is deleted; this one is empty.
	return c.DelNetworkList(ctx, &libcni.NetworkConfigList{Name: list.Name, CNIVersion: list.CNIVersion}, rt)
}

// delOne runs DEL of one plugin, of as many as are left to run within the caller's time.
func (c *chains) delOne(ctx context.Context, left int, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig,
	inject map[string]any, rt *libcni.RuntimeConf) error {
	limit := delLimit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/time.Duration(left))
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return c.run(ctx, "DEL", list, plugin, inject, rt)
}

// cachedResult is the result of ADD, nil if there is none: ADD was cut off, or the cache, which is not written
// atomically, is damaged. Plugins must do without then (CNI SPEC.md, DEL).
func (c *chains) cachedResult(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) types.Result {
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !ok {
		return nil // DEL has had it since 0.4.0
	}
	result, err := c.GetNetworkListCachedResult(list, rt)
	if err != nil {
		logrus.WithError(err).WithField("pod", rt.ContainerID).Warn("cannot read the cached result of the pod's network")
		return nil
	}
	return result
}

// supportsGC tells whether GC is for the network: it came with version 1.1.0.
func supportsGC(list *libcni.NetworkConfigList) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0")
	return err == nil && ok && !list.DisableGC
}

// gc runs GC of every plugin with what is attached to the network; nil is nothing.
func (c *chains) gc(ctx context.Context, list *libcni.NetworkConfigList, attached []types.GCAttachment) error {
	valid := append([]types.GCAttachment{}, attached...) // empty, not null: plugins are to take back all
	// Version 1.1.0 of the specification has both names.
	inject := map[string]any{"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
	var errs []error
	for _, plugin := range list.Plugins {
		if err := c.collectOne(ctx, list, plugin, inject); err != nil {
			errs = append(errs, fmt.Errorf("collect garbage of network %s: plugin %s: %w", list.Name, plugin.Network.Type, err))
		}
	}
	return errors.Join(errs...)
}

func (c *chains) collectOne(ctx context.Context, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, inject map[string]any) error {
	ctx, cancel := context.WithTimeout(ctx, gcLimit)
	defer cancel()
	return c.run(ctx, "GC", list, plugin, inject, &libcni.RuntimeConf{})
}

// run runs one plugin for a command that has no result.
func (c *chains) run(ctx context.Context, command string, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig,
	inject map[string]any, rt *libcni.RuntimeConf) error {
	path, err := c.exec.FindInPath(plugin.Network.Type, c.binDirs)
	if err != nil {
		return err
	}
	values := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	for k, v := range inject {
		values[k] = v
	}
	declared := map[string]any{}
	for name, on := range plugin.Network.Capabilities {
		if v, ok := rt.CapabilityArgs[name]; ok && on {
			declared[name] = v
		}
	}
	if len(declared) > 0 {
		values["runtimeConfig"] = declared
	}
	conf, err := libcni.InjectConf(plugin, values)
	if err != nil {
		return fmt.Errorf("make configuration: %w", err)
	}
	return invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, &invoke.Args{
		Command: command, ContainerID: rt.ContainerID, NetNS: rt.NetNS, PluginArgs: rt.Args, IfName: rt.IfName,
		Path: strings.Join(c.binDirs, ":"),
	}, c.exec)
}

// status asks whether the chain can take pods: all plugins are there, and those that know STATUS are well.
func (c *chains) status(ctx context.Context, list *libcni.NetworkConfigList) error {
	for _, plugin := range list.Plugins {
		if _, err := c.exec.FindInPath(plugin.Network.Type, c.binDirs); err != nil {
			return fmt.Errorf("network %s: %w", list.Name, err)
		}
	}
	if err := c.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("network %s: %w", list.Name, err)
	}
	return nil
}
