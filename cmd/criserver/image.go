package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/mattn/go-isatty"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"criserver/pkg/admin"
)

// imageCommands makes the commands that ask the daemon about its images.
type imageCommands struct {
	options *options
	json    bool
}

func newImage(o *options) *cobra.Command {
	c := &imageCommands{options: o}
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Look at the images of the running daemon, and move them",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		c.list(), c.inspect(), c.remove(), c.tag(), c.pull(), c.push(), c.imports(), c.export(), c.commit(), c.check(), c.explain(),
	)
	return cmd
}

// session is one command at work.
type session struct {
	client *admin.Client
	json   bool
	in     io.Reader
	out    io.Writer
	notes  io.Writer // what is for people, beside the output
}

// command makes a command of what it does.
func (c *imageCommands) command(use, short string, args cobra.PositionalArgs, do func(ctx context.Context, s *session, args []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: args, RunE: interruptible(func(cmd *cobra.Command, args []string) error {
		if err := checkRoot(os.Geteuid()); err != nil {
			return err
		}
		cfg, err := c.options.load(cmd)
		if err != nil {
			return err
		}
		s := &session{
			client: admin.NewClient(adminSocket(cfg)), json: c.json,
			in: cmd.InOrStdin(), out: cmd.OutOrStdout(), notes: cmd.ErrOrStderr(),
		}
		return advised(do(cmd.Context(), s, args))
	})}
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON, for programs")
	return cmd
}

func checkRoot(uid int) error {
	if uid != 0 {
		return errors.New("criserver image must run as root: the daemon's socket for administrators lets nobody else in (try sudo)")
	}
	return nil
}

// advised adds what to do to errors that are not about images.
func advised(err error) error {
	switch {
	case errors.Is(err, admin.ErrNoDaemon):
		return fmt.Errorf("%w: start the daemon (systemctl start criserver), or name its socket by --admin-socket, its state "+
			"directory by --state, or its configuration by --config", err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted; the daemon has been told to stop, too: %w", err)
	}
	return err
}

// print writes a value, either as JSON or for people.
func (s *session) print(value any, human func(w io.Writer)) error {
	if !s.json {
		w := tabwriter.NewWriter(s.out, 0, 0, 3, ' ', 0)
		human(w)
		return w.Flush()
	}
	e := json.NewEncoder(s.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// isTerminal tells whether a person sees what is written to, or types what is read from, a stream.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// shortID is what people use of an ID. It is long enough to be one in the place of a name.
func shortID(d digest.Digest) string {
	_, hex, ok := strings.Cut(d.String(), ":")
	if !ok {
		hex = d.String()
	}
	return hex[:min(len(hex), 12)]
}

func size(n int64) string { return humanize.Bytes(uint64(max(n, 0))) }

func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return humanize.Time(t)
}

// names are all names of an image, or how else to call it.
func names(img admin.Image) string {
	if all := append(append([]string{}, img.Tags...), img.Digests...); len(all) > 0 {
		return strings.Join(all, ", ")
	}
	return shortID(img.ID)
}
