package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"criserver/pkg/admin"
)

func (c *imageCommands) list() *cobra.Command {
	var quiet bool
	cmd := c.command("ls", "List images, the newest first", cobra.NoArgs, func(ctx context.Context, s *session, _ []string) error {
		images, err := s.client.List(ctx)
		if err != nil {
			return err
		}
		return s.print(images, func(w io.Writer) {
			if quiet {
				for _, img := range images {
					fmt.Fprintln(w, img.ID)
				}
				return
			}
			fmt.Fprintln(w, "NAME\tID\tSIZE\tCREATED\tPULLED\tPINNED")
			for _, img := range images {
				listRows(w, img)
			}
		})
	})
	cmd.Aliases = []string{"list"}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	cmd.MarkFlagsMutuallyExclusive("quiet", "json")
	return cmd
}

// listRows writes a row for each name; an image without tags has one with its digests.
func listRows(w io.Writer, img admin.Image) {
	all := img.Tags
	if len(all) == 0 {
		all = img.Digests
	}
	if len(all) == 0 {
		all = []string{"<none>"}
	}
	pinned := ""
	if img.Pinned {
		pinned = "yes"
	}
	for _, name := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", name, shortID(img.ID), size(img.Size), ago(img.Created), ago(img.Pulled), pinned)
	}
}

func (c *imageCommands) inspect() *cobra.Command {
	return c.command("inspect NAME", "Tell all that is known of an image", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		img, err := s.client.Inspect(ctx, args[0])
		if err != nil {
			return err
		}
		return s.print(img, func(w io.Writer) { describe(w, img) })
	})
}

// describe writes what there is of an image, a line for each value.
func describe(w io.Writer, img admin.Image) {
	line := func(name string, values ...string) {
		key := name + ":"
		for _, value := range values {
			if value != "" {
				fmt.Fprintf(w, "%s\t%s\n", key, value)
				key = ""
			}
		}
	}
	line("ID", img.ID.String())
	line("Manifest", img.Manifest.String())
	line("Names", slices.Concat(img.Tags, img.Digests)...)
	line("Size", fmt.Sprintf("%s (%d bytes to download)", size(img.Size), img.Size))
	line("Created", ago(img.Created))
	line("Pulled", ago(img.Pulled))
	if img.Pinned {
		line("Pinned", "yes: the kubelet does not remove it to free space")
	}
	if config := img.Config; config != nil {
		line("Platform", strings.Trim(config.OS+"/"+config.Architecture+"/"+config.Variant, "/"))
		line("Author", config.Author)
		line("User", config.Config.User)
		line("Directory", config.Config.WorkingDir)
		line("Entrypoint", quoted(config.Config.Entrypoint))
		line("Command", quoted(config.Config.Cmd))
		line("Environment", config.Config.Env...)
		line("Ports", slices.Sorted(maps.Keys(config.Config.ExposedPorts))...)
		line("Volumes", slices.Sorted(maps.Keys(config.Config.Volumes))...)
		line("Stop signal", config.Config.StopSignal)
		line("Labels", pairs(config.Config.Labels)...)
	}
	line("Annotations", pairs(img.Annotations)...)
	for _, layer := range img.Layers {
		line("Layer", layer.String())
	}
	line("Containers", img.Containers...)
}

func quoted(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return strings.Trim(fmt.Sprintf("%q", words), "[]")
}

func pairs(m map[string]string) []string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, key+"="+m[key])
	}
	return out
}

func (c *imageCommands) remove() *cobra.Command {
	var force bool
	cmd := c.command("rm NAME...", "Remove images with all their names", cobra.MinimumNArgs(1), func(ctx context.Context, s *session, args []string) error {
		removed := []admin.RemoveResponse{}
		var errs []error
		for _, name := range args {
			r, err := s.client.Remove(ctx, admin.RemoveRequest{Name: name, Force: force})
			if err != nil {
				errs = append(errs, fmt.Errorf("remove %s: %w", name, err))
				continue
			}
			removed = append(removed, r)
		}
		err := s.print(removed, func(w io.Writer) {
			for _, r := range removed {
				for _, name := range r.Names {
					fmt.Fprintln(w, "removed", name)
				}
				if r.ID != "" {
					fmt.Fprintln(w, "removed", r.ID)
				}
			}
		})
		return errors.Join(append(errs, err)...)
	})
	cmd.Aliases = []string{"remove"}
	cmd.Flags().BoolVarP(&force, "force", "f", false,
		"remove images that containers use, that have other names, that are damaged; those that are not there are no error")
	return cmd
}

func (c *imageCommands) tag() *cobra.Command {
	return c.command("tag SOURCE TARGET", "Give an image another name", cobra.ExactArgs(2), func(ctx context.Context, s *session, args []string) error {
		img, err := s.client.Tag(ctx, args[0], args[1])
		if err != nil {
			return err
		}
		return s.print(img, func(w io.Writer) { fmt.Fprintf(w, "%s is %s\n", args[1], img.ID) })
	})
}
