package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"criserver/cmd/criserver/config"
)

// serveFunc is the daemon. It returns nil when it has stopped because ctx was done.
type serveFunc func(ctx context.Context, cfg *config.Config, load loadFunc) error

// loadFunc reads the configuration once more, as the command line says.
type loadFunc func() (*config.Config, error)

// newRoot makes the command tree. Without a subcommand it is serve.
func newRoot(serve serveFunc) *cobra.Command {
	var o options
	runServe := func(cmd *cobra.Command, _ []string) error {
		var cfg *config.Config
		read := interruptible(func(cmd *cobra.Command, _ []string) (err error) {
			cfg, err = o.load(cmd)
			return err
		})
		if err := read(cmd, nil); err != nil {
			return err
		}
		return serve(cmd.Context(), cfg, func() (*config.Config, error) { return o.load(cmd) })
	}
	root := &cobra.Command{
		Use:           "criserver",
		Short:         "A container runtime for Kubernetes nodes (CRI v1)",
		Args:          cobra.NoArgs,
		RunE:          runServe,
		SilenceUsage:  true, // an error is one line, not a screen of flags
		SilenceErrors: true, // main prints it
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	o.addFlags(root.PersistentFlags())
	root.AddCommand(
		&cobra.Command{
			Use:   "serve",
			Short: "Run the daemon, until SIGTERM; containers go on without it (this is the default command)",
			Args:  cobra.NoArgs,
			RunE:  runServe,
		},
		newImage(&o),
		newConfig(&o),
		newVersion(),
		newStreams(),
		newCRIU(),
	)
	return root
}

func newConfig(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Look at the configuration",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "default",
			Short: "Print the default configuration, a file to start from",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return config.Default().WriteTOML(cmd.OutOrStdout())
			},
		},
		&cobra.Command{
			Use:   "check [FILE]",
			Short: "Tell whether serve would accept the configuration, with config.d beside it and the flags given",
			Args:  cobra.MaximumNArgs(1),
			RunE: interruptible(func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					if err := cmd.Flags().Set(flagConfig, args[0]); err != nil {
						return err
					}
				}
				cfg, err := o.load(cmd)
				if err != nil {
					return err
				}
				read := "no file; the defaults"
				if len(cfg.Files) > 0 {
					read = strings.Join(cfg.Files, ", ")
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "ok: %s\n", read)
				return err
			}),
		},
	)
	return cmd
}
