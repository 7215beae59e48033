package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"criserver/cmd/criserver/config"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/runtime/criu"
)

// newCRIU is what crimonitor executes to checkpoint and restore containers of the built-in runtime. The program is chosen by the
// daemon, and so of its version.
func newCRIU() *cobra.Command {
	return &cobra.Command{
		Use: "criu", Short: "Call criu for crimonitor", Hidden: true, DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) { criu.Run(args) },
	}
}

func (d *daemon) checkpointTools(c *config.Config) (checkpoint.Tools, error) {
	self, err := os.Executable()
	return checkpoint.Tools{
		Root: filepath.Join(c.Root, "checkpoints"), CRIU: c.Runtime.CRIU, Helper: self, FillLayer: d.images.FillLayer, FillVolumes: d.images.FillVolumes,
	}, err
}
