package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"

	"criserver/pkg/cni/bridge"
	"criserver/pkg/cni/template"
	"criserver/pkg/wholefile"
)

// cidrFile keeps the pod CIDRs, in DataDir: the kubelet does not tell them again when only this process restarts.
const cidrFile = "pod-cidrs"

// SetPodCIDRs takes the ranges that the cluster has given the node for its pods, one a family at most. With a template the
// network is made of that, in ConfDir, unless there is a configuration of somebody else's. Else they are the subnets of the
// built-in network, unless the operator has fixed these; pods that are there keep their addresses. They outlive a restart.
// ErrInvalid. ErrGatewayTaken.
func (n *Network) SetPodCIDRs(ctx context.Context, cidrs []netip.Prefix) error {
	if err := bridge.CheckSubnets(cidrs); err != nil {
		return fmt.Errorf("%w: pod CIDR: %w", ErrInvalid, err)
	}
	release, err := n.cidrs.Acquire(ctx, cidrFile)
	if err != nil {
		return fmt.Errorf("set pod CIDRs: %w", err)
	}
	defer release()
	if err := n.usePodCIDRs(ctx, cidrs); err != nil {
		return fmt.Errorf("set pod CIDRs %v: %w", cidrs, err)
	}
	return writeCIDRs(n.config.DataDir, cidrs)
}

func (n *Network) usePodCIDRs(ctx context.Context, cidrs []netip.Prefix) error {
	log := logrus.WithField("cidrs", fmt.Sprint(cidrs))
	switch c := n.config; {
	case c.Template != "":
		text, err := template.Render(c.Template, cidrs)
		if err != nil {
			return err
		}
		other, err := template.Install(c.ConfDir, text)
		if err != nil {
			return err
		}
		if other != "" {
			log.WithField("file", other).Warn("there is a CNI configuration already: the template is not used")
			return nil
		}
		log.WithField("file", filepath.Join(c.ConfDir, template.FileName)).Info("the CNI configuration is made of the template")
	case c.Builtin.Disabled:
	case c.Builtin.Fixed:
		log.WithField("subnets", fmt.Sprint(c.Builtin.Subnets)).Info("the built-in network does not take the pod CIDRs: its subnets are configured")
	default:
		if err := n.builtin.bridge.SetSubnets(ctx, cidrs); err != nil {
			return err
		}
		log.Info("the built-in network gives pods addresses of the pod CIDRs")
	}
	return nil
}

// readCIDRs are those of the last SetPodCIDRs; none if there was none, or they are of no use any more.
func readCIDRs(dir string) []netip.Prefix {
	b, err := os.ReadFile(filepath.Join(dir, cidrFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var cidrs []netip.Prefix
	for _, field := range strings.Fields(string(b)) {
		p, perr := netip.ParsePrefix(field)
		cidrs, err = append(cidrs, p), errors.Join(err, perr)
	}
	if err == nil {
		err = bridge.CheckSubnets(cidrs)
	}
	if err != nil {
		logrus.WithError(err).Warn("the pod CIDRs of the last time cannot be used; the kubelet tells them when it starts")
		return nil
	}
	return cidrs
}

func writeCIDRs(dir string, cidrs []netip.Prefix) error {
	var text strings.Builder
	for _, c := range cidrs {
		fmt.Fprintln(&text, c)
	}
	if err := wholefile.Write(filepath.Join(dir, cidrFile), []byte(text.String())); err != nil {
		return fmt.Errorf("record pod CIDRs: %w", err)
	}
	return nil
}
