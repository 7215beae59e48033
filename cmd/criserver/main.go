// Command criserver is a Kubernetes container runtime: it serves the CRI on a Unix socket.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:], os.Stdout, serve); err != nil {
		fmt.Fprintln(os.Stderr, "criserver:", err)
		os.Exit(1)
	}
}

// run executes the command line args, with serveFunc as the daemon. What was asked for is written to out.
func run(ctx context.Context, args []string, out io.Writer, serveFunc serveFunc) error {
	root := newRoot(serveFunc)
	root.SetArgs(args)
	root.SetOut(out)
	return root.ExecuteContext(ctx)
}
