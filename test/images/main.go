// The images program builds the images that tests pull and pushes them to a registry:
//
//	go run ./test/images -registry 127.0.0.1:5000   to a registry that runs already
//	go run ./test/images -serve DIR                 to one that it runs itself, with its content in DIR
//	go run ./test/images -list                      nowhere: prints each name with its digest
//
// Repositories have the names' paths without the host: a runtime is to be told that the registry is the
// mirror of registry.k8s.io, k8s.gcr.io, gcr.io and docker.io. With -serve the registry's address is the
// one line on standard output, printed when all images are there; it runs until SIGTERM or SIGINT.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"criserver/test/images/catalog"
	"criserver/test/images/registry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	addr := flags.String("registry", "", "push to the registry at this `host:port`")
	dir := flags.String("serve", "", "run a registry with its content in `DIR`, and push to it")
	list := flags.Bool("list", false, "print names and digests")
	only := flags.String("only", "", "only images with this `text` in a name")
	cache := flags.String("cache", ".cache", "`directory` for what is downloaded")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *addr == "" && *dir == "" && !*list {
		return errors.New("nothing to do: give -registry, -serve or -list (-h explains)")
	}
	abs, err := filepath.Abs(*cache)
	if err != nil {
		return err
	}
	all, err := catalog.Load(ctx, abs)
	if err != nil {
		return err
	}
	entries := filter(all, *only)
	if len(entries) == 0 {
		return fmt.Errorf("no image has %q in its name", *only)
	}
	if *list {
		for _, e := range entries {
			for _, name := range e.Names {
				fmt.Println(name, e.Image.Root.Digest)
			}
		}
	}
	if *addr != "" {
		if err := catalog.Push(ctx, *addr, entries); err != nil {
			return err
		}
	}
	if *dir != "" {
		return serve(ctx, *dir, entries)
	}
	return nil
}

func filter(entries []catalog.Entry, text string) []catalog.Entry {
	var kept []catalog.Entry
	for _, e := range entries {
		if strings.Contains(strings.Join(e.Names, " "), text) {
			kept = append(kept, e)
		}
	}
	return kept
}

func serve(ctx context.Context, dir string, entries []catalog.Entry) error {
	r, err := registry.Start(ctx, dir)
	if err != nil {
		return err
	}
	if err := catalog.Push(ctx, r.Addr, entries); err != nil {
		return errors.Join(err, r.Stop())
	}
	fmt.Println(r.Addr)
	<-ctx.Done()
	return r.Stop()
}
