// The pull program compares how CRI runtimes pull images:
//
//	pull push  -registry HOST:PORT                     makes the images and pushes them
//	pull proxy -registry HOST:PORT [-rate B] [-latency D]
//	                                                   runs a slow way to the registry, prints its host:port
//	pull run   -side NAME,SOCKET,PID,ROOT -side …      pulls in turn, prints medians and the ratio to the first side
//
// Before each pull the image is gone from every runtime, disk included, and all that was written is on the disk; the
// registry's files are in the page cache. See hack/bench/pull.sh, which starts all of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "pull:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("push, proxy or run?")
	}
	mode, args := args[0], args[1:]
	flags := flag.NewFlagSet("pull "+mode, flag.ContinueOnError)
	switch mode {
	case "push":
		registry := flags.String("registry", "", "`host:port` to push to")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return push(ctx, *registry)
	case "proxy":
		var p proxy
		flags.StringVar(&p.registry, "registry", "", "`host:port` to pass on to")
		flags.IntVar(&p.rate, "rate", 20_000_000, "`bytes` a second that each connection gets")
		flags.DurationVar(&p.latency, "latency", 30*time.Millisecond, "how long bytes are on their way from the registry")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return p.run(ctx)
	case "run":
		var b bench
		flags.IntVar(&b.runs, "n", 10, "pulls of each image by each side, beside the first, which does not count")
		only := flags.String("only", "", "only images with this `text` in their name")
		flags.Func("side", "`NAME,SOCKET,PID,ROOT` of a runtime; at least one", b.addSide)
		if err := flags.Parse(args); err != nil {
			return err
		}
		if b.runs < 1 || len(b.sides) == 0 {
			return errors.New("at least one -side and one run are needed")
		}
		return b.run(ctx, *only)
	}
	return fmt.Errorf("%s: no such mode: push, proxy or run", mode)
}

// bench is a comparison.
type bench struct {
	runs  int
	sides []*side
}

func (b *bench) addSide(text string) error {
	parts := strings.Split(text, ",")
	if len(parts) != 4 {
		return errors.New("want NAME,SOCKET,PID,ROOT")
	}
	b.sides = append(b.sides, &side{label: parts[0], socket: parts[1], proc: "/proc/" + parts[2], root: parts[3]})
	return nil
}

func (b *bench) run(ctx context.Context, only string) error {
	for _, s := range b.sides {
		if err := s.dial(ctx); err != nil {
			return err
		}
		defer s.conn.Close()
	}
	for _, img := range images {
		if !strings.Contains(img.name, only) {
			continue
		}
		if err := b.image(ctx, img); err != nil {
			return fmt.Errorf("%s: %w", img.name, err)
		}
	}
	return nil
}
