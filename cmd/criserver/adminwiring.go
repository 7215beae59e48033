package main

import (
	"path/filepath"

	"criserver/cmd/criserver/config"
	"criserver/pkg/admin"
)

// adminSocket is where the administrator's socket is.
func adminSocket(c *config.Config) string {
	if c.Admin.Socket != "" {
		return c.Admin.Socket
	}
	return filepath.Join(c.State, "admin.sock")
}

// adminBackends are the parts of the daemon that administrators use.
func (d *daemon) adminBackends() admin.Backends {
	return admin.Backends{
		Images: d.images, Transfers: d.images, Archives: d.images, Committer: d.images, Checker: d.images,
		Explainer: d.images, Containers: d.pods, Freezer: d.pods,
	}
}
