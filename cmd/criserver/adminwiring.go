package main

import (
	"os"
	"path/filepath"
	"strconv"

	"criserver/cmd/criserver/config"
	"criserver/pkg/admin"
	"criserver/pkg/cri"
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

// backends are what the CRI's edge calls.
func (d *daemon) backends() cri.Backends {
	return cri.Backends{
		Pods: d.pods, Containers: d.pods, Commands: d.pods, Images: d.images, Streams: d.streams,
		Checkpoints:  d.checkpoints,
		RuntimeReady: d.pods.Ready, NetworkReady: d.network.Ready, SetPodCIDRs: d.network.SetPodCIDRs, Handlers: d.handlers.List,
		CgroupDriver: d.cgroupDriver, CheckHandler: d.handlers.Check,
		Version: version,
		Info: func() map[string]string {
			return map[string]string{"config": strconv.Quote("criserver config default lists the keys"), "pid": strconv.Itoa(os.Getpid())}
		},
	}
}
