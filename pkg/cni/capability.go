package cni

import (
	"fmt"
	"math"
	"math/big"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"

	// unlimitedBurst is how much may exceed a rate at once, in bits. Kubernetes has no setting for it.
	unlimitedBurst = math.MaxInt32
)

// The limits of a rate are Kubernetes' own, 1 kbit/s to 1 Pbit/s.
var minRate, maxRate = big.NewRat(1_000, 1), big.NewRat(1_000_000_000_000_000, 1)

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

type bandwidth struct {
	IngressRate  int64 `json:"ingressRate,omitempty"`
	IngressBurst int64 `json:"ingressBurst,omitempty"`
	EgressRate   int64 `json:"egressRate,omitempty"`
	EgressBurst  int64 `json:"egressBurst,omitempty"`
}

type dns struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// capabilities are the capability arguments (CNI CONVENTIONS.md) that a plugin of the list declares and the pod has.
func capabilities(list *libcni.NetworkConfigList, p Pod) (map[string]any, error) {
	wanted := map[string]bool{}
	for _, plugin := range list.Plugins {
		for name, on := range plugin.Network.Capabilities {
			wanted[name] = wanted[name] || on
		}
	}
	out := map[string]any{}
	if wanted["portMappings"] {
		if m := portMappings(p.Ports); len(m) > 0 {
			out["portMappings"] = m
		}
	}
	if wanted["bandwidth"] {
		b, err := bandwidthOf(p.Annotations)
		if err != nil {
			return nil, err
		}
		if b != (bandwidth{}) {
			out["bandwidth"] = b
		}
	}
	if d := p.DNS; wanted["dns"] && len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		out["dns"] = dns(d)
	}
	if wanted["io.kubernetes.cri.pod-annotations"] && len(p.Annotations) > 0 {
		out["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	if wanted["cgroupPath"] && p.CgroupParent != "" {
		out["cgroupPath"] = p.CgroupParent
	}
	return out, nil
}

func portMappings(ports []PortMapping) []portMapping {
	var out []portMapping
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		protocol := strings.ToLower(p.Protocol)
		if protocol == "" {
			protocol = "tcp"
		}
		out = append(out, portMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: protocol, HostIP: p.HostIP})
	}
	return out
}

func bandwidthOf(annotations map[string]string) (b bandwidth, err error) {
	if v, ok := annotations[ingressAnnotation]; ok {
		if b.IngressRate, err = parseRate(v); err != nil {
			return b, fmt.Errorf("annotation %s: %w", ingressAnnotation, err)
		}
		b.IngressBurst = unlimitedBurst
	}
	if v, ok := annotations[egressAnnotation]; ok {
		if b.EgressRate, err = parseRate(v); err != nil {
			return b, fmt.Errorf("annotation %s: %w", egressAnnotation, err)
		}
		b.EgressBurst = unlimitedBurst
	}
	return b, nil
}

// suffixes of a quantity, as powers of ten and of two.
var (
	decimalSuffixes = map[string]int64{"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
	binarySuffixes  = map[string]uint{"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
)

// parseRate reads a Kubernetes quantity (k8s.io/apimachinery/pkg/api/resource), rounded up, of bits per second.
func parseRate(s string) (int64, error) {
	value, err := parseQuantity(s)
	if err != nil {
		return 0, err
	}
	if value.Cmp(minRate) < 0 || value.Cmp(maxRate) > 0 {
		return 0, fmt.Errorf("bandwidth %q is not between 1k and 1P bits per second", s)
	}
	rounded := new(big.Int).Add(value.Num(), new(big.Int).Sub(value.Denom(), big.NewInt(1)))
	return rounded.Div(rounded, value.Denom()).Int64(), nil
}

func parseQuantity(s string) (*big.Rat, error) {
	bad := fmt.Errorf("bandwidth %q is not a quantity such as 10M", s)
	number := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	suffix := s[len(number):]
	var exponent string
	if i := strings.IndexAny(s, "eE"); i > 0 && i < len(s)-1 && suffix == "" {
		number, exponent = s[:i], s[i+1:]
	}
	digits := strings.TrimLeft(number, "+-")
	if len(number)-len(digits) > 1 || len(s) > 64 || digits == "" || digits == "." || strings.Trim(digits, "0123456789.") != "" {
		return nil, bad
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return nil, bad
	}
	power, ok := decimalSuffixes[suffix]
	if exponent != "" {
		// More than two digits are out of the range of rates anyway, and would cost time.
		sign := strings.TrimLeft(exponent, "+-")
		if len(exponent)-len(sign) > 1 || sign == "" || len(sign) > 2 || strings.Trim(sign, "0123456789") != "" {
			return nil, bad
		}
		_, _ = fmt.Sscan(exponent, &power)
	}
	if shift, binary := binarySuffixes[suffix]; binary {
		return value.Mul(value, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift))), nil
	}
	if !ok {
		return nil, bad
	}
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(max(power, -power)), nil)
	if power < 0 {
		return value.Mul(value, new(big.Rat).SetFrac(big.NewInt(1), scale)), nil
	}
	return value.Mul(value, new(big.Rat).SetInt(scale)), nil
}
