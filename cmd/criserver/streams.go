package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"criserver/cmd/criserver/config"
	"criserver/pkg/cri/streaming"
	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/monitor/launch"
)

// streamsLinger is how long the stream server stays without a session.
const streamsLinger = 5 * time.Minute

const cmdStreams = "stream-server"

// streamClient starts stream servers as they are needed, in a cgroup of their own.
func streamClient(c *config.Config, monitorSocket string) (client *streaming.Client, cgroupPath string) {
	s := c.Streaming
	settings := streaming.Settings{
		Control: filepath.Join(c.State, "streams.sock"), Monitor: monitorSocket,
		Address: s.Address, Port: s.Port,
		TLS:  s.TLS.Settings(),
		Idle: time.Duration(s.IdleTimeout), Creation: time.Duration(s.CreationTimeout), Grace: time.Duration(s.HangUpGrace),
		Linger: streamsLinger, Version: version,
	}
	cgroupPath = filepath.Join(c.Runtime.CgroupRoot, "streams")
	logFile := filepath.Join(c.State, "streams.log")
	return streaming.NewClient(settings, func(ctx context.Context, answers func(context.Context) error) error {
		return startStreams(ctx, settings, answers, logFile, cgroupPath, c.Log.Level)
	}), cgroupPath
}

// stopStreams ends the stream server, unless it has sessions: then it ends with the last of them.
func stopStreams(ctx context.Context, client *streaming.Client, cgroupPath string) error {
	ends, err := client.Drain(ctx)
	if ends {
		cgroup.PruneWait(ctx, cgroupPath)
	}
	return err
}

// startStreams starts this program as a stream server, and returns once that answers.
func startStreams(
	ctx context.Context, s streaming.Settings, answers func(context.Context) error, logFile, cgroupPath, level string,
) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	encoded, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode settings: %w", err)
	}
	p, err := launch.Detach(logFile, cgroupPath, self, cmdStreams, "--log-level", level, string(encoded))
	if err != nil {
		return err
	}
	return p.Await(ctx, func(ctx context.Context) (bool, error) { return true, answers(ctx) })
}

// newStreams is the stream server, which nobody but the daemon starts.
func newStreams() *cobra.Command {
	return &cobra.Command{
		Use:    cmdStreams + " SETTINGS",
		Short:  "Serve exec, attach and port-forward; started by the daemon",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s streaming.Settings
			if err := json.Unmarshal([]byte(args[0]), &s); err != nil {
				return fmt.Errorf("decode settings: %w", err)
			}
			level, err := cmd.Flags().GetString("log-level")
			if err != nil {
				return err
			}
			if err := (config.Log{Level: level}).SetUp(); err != nil {
				return err
			}
			server, err := streaming.NewServer(s)
			if err != nil {
				return err
			}
			return server.Run(cmd.Context())
		},
	}
}
