package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"criserver/pkg/admin"
	"criserver/pkg/imagesvc"
)

func (c *imageCommands) commit() *cobra.Command {
	var req admin.CommitRequest
	cmd := c.command("commit CONTAINER NAME", "Make an image of a container's files as they are", cobra.ExactArgs(2),
		func(ctx context.Context, s *session, args []string) error {
			req.Container, req.Name = args[0], args[1]
			img, err := s.client.Commit(ctx, req)
			if err != nil {
				return err
			}
			return s.print(img, func(w io.Writer) { fmt.Fprintln(w, img.ID) })
		})
	flags := cmd.Flags()
	flags.StringVarP(&req.Author, "author", "a", "", "who made it")
	flags.StringVarP(&req.Comment, "message", "m", "", "what was changed")
	// Not comma-separated: an instruction may have a comma in it.
	flags.StringArrayVarP(&req.Changes, "change", "c", nil, `an instruction of a Dockerfile, such as 'CMD ["x"]'; may be repeated`)
	flags.BoolVar(&req.NoPause, "no-pause", false, "let the container's processes run meanwhile; its files may not fit together then")
	return cmd
}

func (c *imageCommands) check() *cobra.Command {
	var repair bool
	cmd := c.command("check", "Look for damage of what is kept of images; exits with 1 if any remains", cobra.NoArgs,
		func(ctx context.Context, s *session, _ []string) error {
			findings, err := s.client.Check(ctx, repair)
			if err != nil {
				return err
			}
			if err := s.print(findings, func(w io.Writer) { printFindings(w, findings) }); err != nil {
				return err
			}
			remain := 0
			for _, f := range findings {
				if !f.Repaired {
					remain++
				}
			}
			switch {
			case remain == 0:
				return nil
			case repair:
				return fmt.Errorf("problems that could not be repaired: %d of %d", remain, len(findings))
			}
			return fmt.Errorf("problems were found: %d; --repair mends what can be", remain)
		})
	cmd.Flags().BoolVar(&repair, "repair", false, "repair what can be, from the registry if need be")
	return cmd
}

func printFindings(w io.Writer, findings []imagesvc.Finding) {
	if len(findings) == 0 {
		fmt.Fprintln(w, "nothing is wrong")
		return
	}
	for _, f := range findings {
		fmt.Fprintf(w, "%s %s: %s\n", f.Kind, f.Name, f.Problem)
		if len(f.Images) > 0 {
			ids := make([]string, 0, len(f.Images))
			for _, id := range f.Images {
				ids = append(ids, shortID(id))
			}
			fmt.Fprintf(w, "   images:\t%s\n", strings.Join(ids, ", "))
		}
		if f.Repaired || f.Action != "" {
			repaired := "no"
			if f.Repaired {
				repaired = "yes"
			}
			// An action may quote the errors of several registries, each on a line.
			fmt.Fprintf(w, "   repaired:\t%s\n", oneLine(repaired+", "+f.Action))
		}
	}
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }
