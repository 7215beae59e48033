package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"criserver/cmd/criserver/config"
)

const (
	flagConfig    = "config"
	flagCNIBinDir = "cni-bin-dir"
)

// textFlags are the keys of the configuration that a flag can override: all paths, and the log's form.
var textFlags = []struct {
	name, usage string
	key         func(c *config.Config) *string
}{
	{"socket", "the Unix socket to serve the CRI on", func(c *config.Config) *string { return &c.Socket }},
	{"state", "the directory of what does not outlive a reboot", func(c *config.Config) *string { return &c.State }},
	{"root", "the directory of images, snapshots and records", func(c *config.Config) *string { return &c.Root }},
	{"log-level", "debug, info, warn or error", func(c *config.Config) *string { return &c.Log.Level }},
	{"log-format", "text or json", func(c *config.Config) *string { return &c.Log.Format }},
	{"log-file", "the file to log to, instead of standard error", func(c *config.Config) *string { return &c.Log.File }},
	{"admin-socket", "the administrator's Unix socket, instead of admin.sock in the state directory",
		func(c *config.Config) *string { return &c.Admin.Socket }},
	{"monitor", "the crimonitor program, instead of the one beside criserver or in PATH",
		func(c *config.Config) *string { return &c.Monitor.Path }},
	{"monitor-log", "crimonitor's log file, instead of crimonitor.log in the state directory",
		func(c *config.Config) *string { return &c.Monitor.Log }},
	{"monitor-socket", "crimonitor's Unix socket, instead of crimonitor.sock in the state directory",
		func(c *config.Config) *string { return &c.Monitor.Socket }},
	{"cgroup-root", "the parent cgroup of pods that come without one",
		func(c *config.Config) *string { return &c.Runtime.CgroupRoot }},
	{"nri-socket", "the Unix socket that NRI plugins connect to, where NRI is on",
		func(c *config.Config) *string { return &c.NRI.SocketPath }},
	{"nri-plugin-dir", "the directory of NRI plugins that are started with the daemon",
		func(c *config.Config) *string { return &c.NRI.PluginPath }},
	{"nri-plugin-conf-dir", "the directory of their configurations",
		func(c *config.Config) *string { return &c.NRI.PluginConfigPath }},
	{"cni-conf-dir", "the directory of the network configuration",
		func(c *config.Config) *string { return &c.CNI.ConfDir }},
}

// options is the command line.
type options struct {
	config string
	texts  []string // as textFlags
	cniBin []string
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringVar(&o.config, flagConfig, config.DefaultPath, "the configuration file")
	defaults := config.Default()
	o.texts = make([]string, len(textFlags))
	for i, f := range textFlags {
		flags.StringVar(&o.texts[i], f.name, *f.key(defaults), f.usage)
	}
	// Not comma-separated: a path may have a comma in it.
	flags.StringArrayVar(&o.cniBin, flagCNIBinDir, defaults.CNI.BinDirs, "a directory of CNI plugins; may be repeated")
}

// load reads the configuration and puts the flags over it.
func (o *options) load(cmd *cobra.Command) (*config.Config, error) {
	cfg, err := config.Load(o.config, cmd.Flags().Changed(flagConfig))
	if err != nil {
		return nil, err
	}
	for i, f := range textFlags {
		if cmd.Flags().Changed(f.name) {
			*f.key(cfg) = o.texts[i]
		}
	}
	if cmd.Flags().Changed(flagCNIBinDir) {
		cfg.CNI.BinDirs = o.cniBin
	}
	// The files have been found good, so that what is wrong now came by a flag.
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	return cfg, nil
}
