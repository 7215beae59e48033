package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"criserver/pkg/admin"
	"criserver/pkg/imagesvc"
)

func (c *imageCommands) imports() *cobra.Command {
	var name string
	cmd := c.command("import [FILE|-]", "Take in an archive of images, of the form of OCI or docker save", cobra.MaximumNArgs(1),
		func(ctx context.Context, s *session, args []string) error {
			archive, total, err := s.archive(args)
			if err != nil {
				return err
			}
			defer archive.Close()
			p := s.progress(total, wordsOfPull)
			images, err := s.client.Import(ctx, archive, name, p.show)
			p.end(err == nil)
			if err != nil {
				return err
			}
			return s.result(admin.ImportResponse{Images: images}, func(w io.Writer) {
				for _, img := range images {
					fmt.Fprintf(w, "%s is %s\n", names(img), img.ID)
				}
			})
		})
	cmd.Flags().StringVar(&name, "name", "", "the name of the archive's image, which must be the only one")
	return cmd
}

// archive opens what to import, and tells its size, 0 if that is not known.
func (s *session) archive(args []string) (io.ReadCloser, int64, error) {
	if len(args) == 0 || args[0] == "-" {
		if isTerminal(s.in) {
			return nil, 0, errors.New("no archive comes from a terminal: name a file, or redirect standard input")
		}
		return io.NopCloser(s.in), 0, nil
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, 0, fmt.Errorf("open archive: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory; pack an image layout with tar -C %s -c . | criserver image import", args[0], args[0])
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	if !info.Mode().IsRegular() {
		return f, 0, nil
	}
	return f, info.Size(), nil
}

// exported is what export tells of a file.
type exported struct {
	File string `json:"file"`
	Size int64  `json:"size"`
}

func (c *imageCommands) export() *cobra.Command {
	var file, format string
	cmd := c.command("export NAME...", "Write an archive of images", cobra.MinimumNArgs(1), func(ctx context.Context, s *session, args []string) error {
		req := admin.ExportRequest{Names: args, Format: imagesvc.Format(format)}
		if file == "-" {
			if isTerminal(s.out) {
				return errors.New("an archive is not written to a terminal: name a file by -o FILE, or redirect standard output")
			}
			return s.client.Export(ctx, s.out, req)
		}
		n, err := writeWhole(file, func(w io.Writer) error { return s.client.Export(ctx, w, req) })
		if err != nil {
			return err
		}
		return s.print(exported{file, n}, func(w io.Writer) { fmt.Fprintf(w, "%s has %s\n", file, size(n)) })
	})
	cmd.Flags().StringVarP(&file, "output", "o", "-", "the file to write; - is standard output")
	cmd.Flags().StringVar(&format, "format", string(imagesvc.FormatOCI), "oci or docker")
	return cmd
}

// writeWhole writes a file that has all of the content or is as it was, and returns its size. What is no regular file, such as
// a pipe, is written as it is.
func writeWhole(path string, write func(io.Writer) error) (n int64, err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	var f *os.File
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			return 0, fmt.Errorf("open output: %w", err)
		}
		w := &counter{w: f}
		err = errors.Join(write(w), f.Close())
		return w.n, err
	}
	if f, err = os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*"); err != nil {
		return 0, fmt.Errorf("make output: %w", err)
	}
	w := &counter{w: f}
	err = write(w)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return 0, errors.Join(err, os.Remove(f.Name()))
	}
	return w.n, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
