package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/cmd/criserver/config"
	"criserver/pkg/checkpoints"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/monitor/launch"
	"criserver/pkg/sandbox/podspace"
	"criserver/pkg/sandbox/qosclass"
)

func (d *daemon) openHandlers(ctx context.Context, c *config.Config) error {
	if err := qosclass.Configure(c.Runtime.RDTConfig, c.Runtime.BlockIOConfig); err != nil {
		return err
	}
	program, err := monitorProgram(c.Monitor.Path)
	if err != nil {
		return err
	}
	if d.handlers, err = c.Handlers(nodeFeatures(ctx, program, c), d.storage.Ready); err != nil {
		return err
	}
	d.handlers.Probe(ctx)
	return nil
}

// nodeFeatures tries what the node allows to runtimes.
func nodeFeatures(ctx context.Context, program string, c *config.Config) handler.Features {
	node := handler.Features{RecursiveReadOnlyMounts: host.RecursiveReadOnly()}
	if err := podspace.TryUsers(ctx, program, c.State, c.Root); err != nil {
		logrus.WithError(err).Warn("there are no user namespaces for pods on this node")
		return node
	}
	node.UserNamespaces = true
	if err := podspace.TryUsersOnHostNetwork(ctx, program, c.State); err != nil {
		logrus.WithError(err).Warn("there are no user namespaces for pods on the network of this node")
	} else {
		node.UsersOnHostNetwork = true
	}
	return node
}

func (d *daemon) openPods(ctx context.Context, c *config.Config) error {
	pods, err := sandboxConfig(c)
	if err != nil {
		return err
	}
	if err := pods.CgroupDriver.Check(); err != nil {
		return err
	}
	d.cgroupDriver = pods.CgroupDriver
	if pods.Checkpoints, err = d.checkpointTools(c); err != nil {
		return err
	}
	pods.Handlers, pods.Plugins = d.handlers, d.plugins.contract()
	d.streams, d.streamsCgroup = streamClient(c, pods.Monitor.Socket)
	if d.pods, err = sandbox.New(ctx, pods, d.podRecords, d.network, d.storage); err != nil {
		return err
	}
	d.checkpoints = &checkpoints.Service{
		Pods: d.pods, Runner: d.pods, Images: d.images, Tools: pods.Checkpoints, FromImages: c.Runtime.RestoreImages,
		Files: hostpath.FilesBy(pods.Monitor.Binary),
	}
	connect, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	d.pods.Start(connect)
	return nil
}

func sandboxConfig(c *config.Config) (sandbox.Config, error) {
	program, err := monitorProgram(c.Monitor.Path)
	if err != nil {
		return sandbox.Config{}, err
	}
	// A container's root must not be named through a link, as /var/run is one (runc refuses it).
	state, err := filepath.EvalSymlinks(c.State)
	if err != nil {
		return sandbox.Config{}, fmt.Errorf("resolve state directory: %w", err)
	}
	m := launch.Config{
		Binary: program, StateDir: filepath.Join(state, "monitor"), LogLevel: c.Log.Level,
		Socket: cmp.Or(c.Monitor.Socket, filepath.Join(c.State, "crimonitor.sock")), Log: cmp.Or(c.Monitor.Log, filepath.Join(c.State, "crimonitor.log")),
		Cgroup: filepath.Join(c.Runtime.CgroupRoot, "monitor"),
	}
	return sandbox.Config{
		StateDir: state, CgroupRoot: c.Runtime.CgroupRoot, CgroupDriver: driver.Kind(c.Runtime.CgroupDriver), CDISpecDirs: c.Runtime.CDISpecDirs, Monitor: m,
		LogRate: int64(c.Runtime.LogRate), LogBurst: int64(c.Runtime.LogBurst), LogToJournal: c.Runtime.LogToJournal,
		IgnoreImageVolumes: c.Runtime.ImageVolumes == "ignore", CheckNetwork: time.Duration(c.CNI.CheckInterval),
	}, nil
}

// monitorProgram finds crimonitor: where it is said to be, beside this program, or in PATH.
func monitorProgram(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if beside := filepath.Join(filepath.Dir(self), "crimonitor"); isProgram(beside) {
		return beside, nil
	}
	found, err := exec.LookPath("crimonitor")
	if err != nil {
		return "", fmt.Errorf("crimonitor is neither beside %s nor in PATH: install it, or name it by monitor.path or --monitor", self)
	}
	return filepath.Abs(found)
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
