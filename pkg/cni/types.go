// Package cni connects pods to the network.
//
// # Which networks
//
// The files of the configuration directory that end in .conflist, .conf or .json are the networks of the node, in the
// order of their names. Pods are attached to the first one, as with the kubelet's other runtimes, or to as many as
// Config.Networks says: the first is eth0, whose addresses are the pod's, then come eth1 and so on. A runtime handler may
// have a directory of its own. Directories are read again when they change. A file among those that count that cannot
// be used makes the network not ready, whatever follows it: a typing error must not move a node's pods to another
// network. Without a file there is the built-in network, a bridge that is wired in process (package bridge).
// All are run through libcni: the built-in network is a chain of one plugin that its Exec hook finds in process.
//
// # What is kept
//
// Before the first plugin of a network runs for a pod, the chain it is to run is written to disk; the record goes when all
// plugins have taken back what they did. So a pod is taken down by the configuration it was set up with, whatever instant
// the process died at and whatever the operator changed since.
//
// # Example
//
//	n, err := cni.New(ctx, cni.Config{DataDir: "/var/lib/criserver/cni"})
//	err = n.GC(ctx, idsOfPodsThatExist)
//	result, err := n.Setup(ctx, cni.Pod{ID: id, Name: "web", Namespace: "default", UID: uid, NetNS: "/run/…/net"})
//	…
//	err = n.Teardown(ctx, cni.Pod{ID: id})
package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/utils"

	"criserver/pkg/cni/bridge"
	"criserver/pkg/cni/shape"
)

// InterfaceName is that of the pods' first interface.
const InterfaceName = "eth0"

// interfaceName is that of a pod's interface by the place of its network among the pod's, from 0 on.
func interfaceName(i int) string { return fmt.Sprintf("eth%d", i) }

// ErrNotReady says that there is no network for pods at present; the error's text says why.
var ErrNotReady = errors.New("network is not ready")

// ErrInvalid says that a pod can never be attached as it is described.
var ErrInvalid = errors.New("invalid")

// ErrPortTaken says that a host port belongs to another pod, which the error's text names. Only the built-in network
// finds out.
var ErrPortTaken = bridge.ErrPortTaken

// ErrExhausted says that the built-in network has no free address.
var ErrExhausted = bridge.ErrExhausted

// ErrGatewayTaken says that the built-in network cannot take subnets yet, as a pod has the address of their gateway.
var ErrGatewayTaken = bridge.ErrGatewayTaken

// ErrUnlimitable says that the kernel cannot limit the pod's bandwidth, on the built-in network.
var ErrUnlimitable = shape.ErrUnsupported

// Pod is what is attached to the network.
type Pod struct {
	// ID names the attachment. It consists of letters, digits and "_.-" and starts with one of the first two.
	ID                   string
	Name, Namespace, UID string
	// Handler is the pod's runtime handler, which may have networks of its own (Config.Handlers).
	Handler string
	// NetNS is the path that the pod's network namespace is pinned at. For Teardown it may be "", or nothing may be there.
	NetNS string
	// Annotations are passed as capability io.kubernetes.cri.pod-annotations; kubernetes.io/ingress-bandwidth and
	// egress-bandwidth of them, in bits per second as a Kubernetes quantity, as capability bandwidth, which each network
	// with it applies to its own interface.
	Annotations map[string]string
	// Ports are the host ports, passed as capability portMappings to the first network that has it.
	Ports []PortMapping
	// CgroupParent is passed as capability cgroupPath.
	CgroupParent string
	// DNS is passed as capability dns.
	DNS DNS
}

// DNS is a pod's resolver configuration.
type DNS struct{ Servers, Searches, Options []string }

// PortMapping leads a port of the node to one of the pod.
type PortMapping struct {
	// Protocol is tcp, udp or sctp; "" is tcp.
	Protocol string
	// A mapping with HostPort 0 is ignored.
	ContainerPort, HostPort int32
	// HostIP is the node's address that the port is for; "" is all of them.
	HostIP string
}

// Result is what a pod got.
type Result struct {
	// IPs are the addresses of the pod's first interface, the primary one first.
	IPs []netip.Addr
}

// Config says where things are. The zero value of a field is the default that is given with it.
type Config struct {
	// ConfDir holds the operator's configuration: /etc/cni/net.d.
	ConfDir string
	// Networks is how many networks of ConfDir a pod is attached to, the first ones by the names of their files: 1; less than
	// 0 is all.
	Networks int
	// Handlers are the networks of runtime handlers that have not the node's, by the handler's name.
	Handlers map[string]HandlerConfig
	// DefaultHandler is whose networks Ready tells of; a name that is not in Handlers has the node's.
	DefaultHandler string
	// Template is a file that the configuration in ConfDir is made of when SetPodCIDRs tells the pods' addresses (package
	// template); until then the node is not ready: there is no built-in network beside it. "" is none.
	Template string
	// BinDirs are searched for plugins in this order: /opt/cni/bin, /usr/lib/cni.
	BinDirs []string
	// DataDir keeps what must survive a restart of the process: /var/lib/criserver/cni.
	DataDir string
	// CacheDir is libcni's, for results of plugins; it must survive like DataDir: DataDir/cache.
	CacheDir string
	Builtin  BuiltinConfig
	// StatusInterval is the time between two looks at the network's state: 10 s. The configuration directory is looked
	// at every 2 s if that is less.
	StatusInterval time.Duration
	// GCGrace protects a pod that was set up in this process from GC: a list of live pods may have been made before the
	// pod was. 1 min; less than 0 is none.
	GCGrace time.Duration
}

// HandlerConfig is what networks the pods of a runtime handler have.
type HandlerConfig struct {
	// ConfDir and Networks are as of Config, whose own are the defaults.
	ConfDir  string
	Networks int
}

// BuiltinConfig is the network for a node without CNI configuration.
type BuiltinConfig struct {
	// Disabled makes a node without configuration not ready.
	Disabled bool
	// Bridge is the name of the bridge: cri0. Table is that of the nftables table of family inet: criserver.
	Bridge, Table string
	// Subnets are the pods', one a family at most: 10.88.0.0/16 and fd63:7269:88::/64. The bridge has the first address.
	// Unless they are Fixed, the ranges that SetPodCIDRs tells take their place.
	Subnets []netip.Prefix
	Fixed   bool
	// MTU of the pods' interfaces: that of the interface of the default route.
	MTU int
	// Linger is how long the bridge stays after the last pod; Close removes it in any case. 0 is not at all.
	Linger time.Duration
}

const (
	defaultStatusInterval = 10 * time.Second
	configInterval        = 2 * time.Second
	defaultGCGrace        = time.Minute
)

func (c Config) withDefaults() Config {
	if c.ConfDir == "" {
		c.ConfDir = "/etc/cni/net.d"
	}
	if c.Networks == 0 {
		c.Networks = 1
	}
	if len(c.BinDirs) == 0 {
		c.BinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	if c.DataDir == "" {
		c.DataDir = "/var/lib/criserver/cni"
	}
	if c.CacheDir == "" {
		c.CacheDir = c.DataDir + "/cache"
	}
	if c.StatusInterval <= 0 {
		c.StatusInterval = defaultStatusInterval
	}
	if c.GCGrace == 0 {
		c.GCGrace = defaultGCGrace
	}
	b := &c.Builtin
	if b.Bridge == "" {
		b.Bridge = "cri0"
	}
	if b.Table == "" {
		b.Table = "criserver"
	}
	if len(b.Subnets) == 0 {
		b.Subnets = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd63:7269:88::/64")}
	}
	return c
}

// validate refuses what cannot be passed to a plugin, or has no meaning to any: an ErrInvalid.
func (p Pod) validate() error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("%w: pod id %q: %w", ErrInvalid, p.ID, err)
	}
	for _, v := range []string{p.Name, p.Namespace, p.UID} {
		// CNI_ARGS is a list of K=V separated by ";" without a way to quote.
		if strings.ContainsAny(v, ";=\x00\n") {
			return fmt.Errorf("%w: pod %s: %q cannot be a CNI argument", ErrInvalid, p.ID, v)
		}
	}
	for _, m := range p.Ports {
		if m.HostPort < 0 || m.HostPort > 65535 {
			return fmt.Errorf("%w: pod %s: host port %d is not in 0..65535", ErrInvalid, p.ID, m.HostPort)
		}
		if m.HostPort != 0 && (m.ContainerPort < 1 || m.ContainerPort > 65535) {
			return fmt.Errorf("%w: pod %s: container port %d of host port %d is not in 1..65535", ErrInvalid, p.ID, m.ContainerPort, m.HostPort)
		}
		switch strings.ToLower(m.Protocol) {
		case "", "tcp", "udp", "sctp":
		default:
			return fmt.Errorf("%w: pod %s: protocol %q of host port %d is none of tcp, udp, sctp", ErrInvalid, p.ID, m.Protocol, m.HostPort)
		}
		if m.HostIP != "" {
			if _, err := netip.ParseAddr(m.HostIP); err != nil {
				return fmt.Errorf("%w: pod %s: host address of host port %d: %w", ErrInvalid, p.ID, m.HostPort, err)
			}
		}
	}
	if _, err := bandwidthOf(p.Annotations); err != nil {
		return fmt.Errorf("%w: pod %s: %w", ErrInvalid, p.ID, err)
	}
	return nil
}
