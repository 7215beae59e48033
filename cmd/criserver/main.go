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

func main() { os.Exit(execute(serve)) }

// execute is main, with serveFunc as the daemon. It returns the exit status.
func execute(serveFunc serveFunc) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stdout, serveFunc)
	if err != nil {
		say(func() { fmt.Fprintln(os.Stderr, "criserver:", err) })
	}
	return exitStatus(err)
}

// run executes the command line args, with serveFunc as the daemon. What was asked for is written to out.
func run(ctx context.Context, args []string, out io.Writer, serveFunc serveFunc) error {
	root := newRoot(serveFunc)
	root.SetArgs(args)
	root.SetOut(out)
	return root.ExecuteContext(ctx)
}
