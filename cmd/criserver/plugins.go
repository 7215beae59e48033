package main

import (
	"context"

	"criserver/cmd/criserver/config"
	"criserver/pkg/nri"
	"criserver/pkg/sandbox/plugin"
)

// plugins are the NRI plugins; nothing when NRI is off.
type plugins struct{ nri *nri.Plugins }

// contract is what pods are told of.
func (p plugins) contract() plugin.Plugins {
	if p.nri == nil {
		return nil
	}
	return p.nri
}

func (p plugins) close(ctx context.Context) error {
	if p.nri == nil {
		return nil
	}
	return p.nri.Close(ctx)
}

func (d *daemon) openPlugins(_ context.Context, c *config.Config) error {
	if !c.NRI.Enable {
		return nil
	}
	settings := c.NRI.Config()
	settings.Version, settings.CDISpecDirs = version, c.Runtime.CDISpecDirs
	var err error
	d.plugins.nri, err = nri.New(settings)
	return err
}

// startPlugins comes when it is known which containers still run.
func (d *daemon) startPlugins(ctx context.Context, _ *config.Config) error {
	if d.plugins.nri == nil {
		return nil
	}
	return d.plugins.nri.Start(ctx, d.pods)
}
