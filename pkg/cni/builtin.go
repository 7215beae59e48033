package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"criserver/pkg/cni/bridge"
	"criserver/pkg/cni/nat"
	"criserver/pkg/cni/shape"
)

const (
	// builtinType is the plugin type of the built-in network. An operator's chain may have it too, as its first plugin.
	builtinType    = "criserver-bridge"
	builtinNetwork = "criserver"
	builtinVersion = "1.1.0"
)

// builtinList is the network of a node without configuration.
func builtinList() (*libcni.NetworkConfigList, error) {
	return libcni.NetworkConfFromBytes(fmt.Appendf(nil,
		`{"cniVersion":%q,"name":%q,"plugins":[{"type":%q,"capabilities":{"portMappings":true,"bandwidth":true}}]}`,
		builtinVersion, builtinNetwork, builtinType))
}

// builtin speaks the CNI protocol for a bridge.
type builtin struct {
	bridge *bridge.Bridge
	// unusable says why the kernel cannot do it; nil if it can.
	unusable error
}

func newBuiltin(c BuiltinConfig, dir string) (*builtin, error) {
	b, err := bridge.Open(bridge.Config{Name: c.Bridge, Table: c.Table, Subnets: c.Subnets, MTU: c.MTU, Dir: dir, Linger: c.Linger})
	if err != nil {
		return nil, fmt.Errorf("open built-in network: %w", err)
	}
	return &builtin{bridge: b, unusable: nat.Probe()}, nil
}

// builtinConf is what of a plugin's configuration concerns it.
type builtinConf struct {
	CNIVersion    string          `json:"cniVersion"`
	PrevResult    json.RawMessage `json:"prevResult"`
	RuntimeConfig struct {
		PortMappings []portMapping `json:"portMappings"`
		// Bandwidth has bursts too, which are of no use: they are without a limit.
		Bandwidth bandwidth `json:"bandwidth"`
	} `json:"runtimeConfig"`
}

// exec is a plugin's execution: environ and stdin are its input, the returned bytes its output.
func (b *builtin) exec(ctx context.Context, stdin []byte, environ []string) ([]byte, error) {
	env := map[string]string{}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, "CNI_") {
			env[k] = v
		}
	}
	command := env["CNI_COMMAND"]
	if command == "VERSION" {
		var out bytes.Buffer
		err := version.All.Encode(&out)
		return out.Bytes(), err
	}
	var conf builtinConf
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read network configuration", err.Error())
	}
	a := bridge.Attachment{ID: env["CNI_CONTAINERID"], NetNS: env["CNI_NETNS"], IfName: env["CNI_IFNAME"]}
	a.Rates = shape.Rates{Ingress: uint64(conf.RuntimeConfig.Bandwidth.IngressRate), Egress: uint64(conf.RuntimeConfig.Bandwidth.EgressRate)}
	a.DefaultRoute = a.IfName == InterfaceName // the pod's other networks are not its way to the world
	for _, p := range conf.RuntimeConfig.PortMappings {
		a.Ports = append(a.Ports, bridge.HostPort{
			Protocol: p.Protocol, HostPort: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort), HostIP: p.HostIP,
		})
	}
	switch command {
	case "ADD":
		return b.add(ctx, conf, a)
	case "DEL":
		return nil, b.bridge.Del(ctx, a.ID)
	case "CHECK":
		return nil, b.bridge.Check(ctx, a)
	case "STATUS":
		return nil, b.unusable
	case "GC":
		return nil, nil // Network.GC asks the bridge itself, whatever the node's network is
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "unknown CNI_COMMAND", command)
}

func (b *builtin) add(ctx context.Context, conf builtinConf, a bridge.Attachment) ([]byte, error) {
	if b.unusable != nil {
		return nil, b.unusable
	}
	if len(conf.PrevResult) > 0 {
		return nil, errors.New("plugin " + builtinType + " must be the first of its chain")
	}
	got, err := b.bridge.Add(ctx, a)
	if err != nil {
		return nil, err
	}
	const podInterface = 2 // its index in Interfaces
	result := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: got.Bridge}, {Name: got.HostIfName}, {Name: a.IfName, Mac: got.MAC, Sandbox: a.NetNS},
		},
	}
	for i, p := range got.Addresses {
		gw := got.Gateways[i].AsSlice()
		result.IPs = append(result.IPs, &types100.IPConfig{Interface: types100.Int(podInterface), Address: ipNet(p), Gateway: gw})
		if !a.DefaultRoute {
			continue
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if p.Addr().Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		result.Routes = append(result.Routes, &types.Route{Dst: ipNet(all), GW: gw})
	}
	versioned, err := result.GetAsVersion(conf.CNIVersion)
	if err != nil {
		return nil, fmt.Errorf("convert result: %w", err)
	}
	return json.Marshal(versioned)
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
