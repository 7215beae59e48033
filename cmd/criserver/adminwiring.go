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

// adminBackends are the parts of the daemon that administrators use. What is left out answers that it is not supported.
func (d *daemon) adminBackends() admin.Backends {
	f := &admin.Funcs{
		ListFunc: d.images.List, ResolveFunc: d.images.Resolve, RemoveFunc: d.images.Remove, PullFunc: d.images.Pull,
	}
	b := f.Backends()
	b.Containers = d.pods
	return b
}
