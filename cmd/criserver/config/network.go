package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"criserver/pkg/cni"
)

// bridgeLinger is how long the built-in network's bridge outlives the last pod.
const bridgeLinger = time.Minute

// NetworkConfig is the form in which package cni takes what is said of the network.
func (c *Config) NetworkConfig() (cni.Config, error) {
	out := cni.Config{
		ConfDir: c.CNI.ConfDir, Networks: networks(c.CNI.MaxNetworks), BinDirs: c.CNI.BinDirs,
		DataDir: filepath.Join(c.Root, "cni"), DefaultHandler: c.DefaultRuntime, Template: c.CNI.Template,
		Builtin: cni.BuiltinConfig{Disabled: c.CNI.Builtin.Disabled, Bridge: c.CNI.Builtin.Bridge, Linger: bridgeLinger},
	}
	out.Handlers = map[string]cni.HandlerConfig{}
	for name, h := range c.Runtimes {
		if h.CNIConfDir == "" && h.CNIMaxNetworks == nil {
			continue
		}
		one := cni.HandlerConfig{ConfDir: h.CNIConfDir}
		if h.CNIMaxNetworks != nil {
			one.Networks = networks(*h.CNIMaxNetworks)
		}
		out.Handlers[name] = one
	}
	if b := c.CNI.Builtin.Bridge; b != Default().CNI.Builtin.Bridge {
		out.Builtin.Table = "criserver_" + b // a second daemon on the machine has its rules for itself, as its bridge
	}
	subnets := c.CNI.Builtin.Subnets
	if out.Builtin.Fixed = len(subnets) > 0; !out.Builtin.Fixed {
		subnets = DefaultSubnets
	}
	for _, s := range subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return out, fmt.Errorf("cni.builtin.subnets: %w", err)
		}
		out.Builtin.Subnets = append(out.Builtin.Subnets, p)
	}
	return out, nil
}

// networks is a number of networks as package cni has it: all are less than 0.
func networks(configured int) int {
	if configured == 0 {
		return -1
	}
	return configured
}
