// Crimonitor is the parent of all containers of a node; criserver starts it and calls it, see package monitor.
//
// It is executed again as the init process of every container ("crimonitor init"), so each package that it imports is paid for each
// time. It is executed for every command that is run in one, too, but most become that before Go code runs: see package enter.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before the Go runtime starts
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/hostpath/probe"
	"criserver/pkg/sandbox/monitor/server"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/runtime/builtin"
	"criserver/pkg/sandbox/runtime/oci"
)

// version is set by the linker.
var version = "0.0.0-dev"

func init() {
	// Only here it is sure to be the first thread that main is locked to: later it may have come to another.
	runtime.LockOSThread()
	if len(os.Args) > 1 && os.Args[1] == "init" {
		debug.SetGCPercent(-1) // it lives for some milliseconds: to collect garbage would take longer than it gains
		libcontainer.Init()    // does not return
	}
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "crimonitor:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 0 && args[0] == "pod-init":
		return podInit()
	case len(args) > 0 && args[0] == "namespaces": // see package ns
		return ns.Serve(os.Stdin, os.Stdout)
	case len(args) == 2 && strings.HasPrefix(args[0], "host-"): // see package hostpath
		if err := askHost(args[0], args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(probe.Code(err))
		}
		return nil
	}
	flags := flag.NewFlagSet("crimonitor", flag.ContinueOnError)
	socket := flags.String("socket", "/run/criserver/crimonitor.sock", "Unix socket to answer criserver on")
	state := flags.String("state", "/run/criserver/monitor", "directory for the state of the containers")
	logFile := flags.String("log", "", "log file (default: standard error)")
	resident := flags.Bool("resident", false, "do not end when criserver ends and there are no containers: a service manager does that")
	level := flags.String("log-level", "info", "least severe level to log")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 { // as a workload with the interpreter /proc/self/exe is executed: not to become a monitor in its container
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := openLog(*logFile, *level); err != nil {
		return err
	}
	// The heap is small and short-lived: collect early rather than grow.
	debug.SetGCPercent(25)
	// The runtime library hands this down to the init processes, which do one thing after the other.
	if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	protect()
	l, unlock, err := listen(*socket)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	// Taken, and left at that: containers would inherit that they are ignored (signal(7)).
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGPIPE)
	logrus.WithFields(logrus.Fields{"version": version, "pid": os.Getpid(), "socket": *socket}).Info("crimonitor serves")
	runtimes := &oci.Set{Dir: filepath.Join(*state, "oci"), Builtin: builtin.New(*state)}
	return offFirstThread(func() error { return server.New(runtimes, version, *resident).Serve(ctx, l) })
}

// askHost looks at a host path, and writes what it is, or what is in the file there.
func askHost(what, path string) error {
	switch what {
	case "host-look":
		probe.Look(path)
		return nil
	case "host-path":
		path, err := probe.Resolve(path)
		if err == nil {
			_, err = os.Stdout.WriteString(path)
		}
		return err
	case "host-file":
		return probe.Copy(os.Stdout, path)
	}
	return fmt.Errorf("crimonitor: unexpected argument %q", what)
}

// offFirstThread calls fn with the process's first thread reserved, which init has locked the calling goroutine to. The runtime library
// enters the mount namespaces of containers on threads that end with the work, and with them their hold on what is mounted there. The
// first thread cannot end before the process (the Go runtime parks it for good), so no goroutine may come to run on it.
func offFirstThread(fn func() error) error {
	result := make(chan error)
	go func() { result <- fn() }()
	return <-result
}

func openLog(path, level string) error {
	lvl, err := logrus.ParseLevel(level)
	if err != nil {
		return err
	}
	logrus.SetLevel(lvl)
	logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	logrus.SetOutput(f)
	return nil
}

// protect keeps the OOM killer off: with this process the log and exit code of every container would be lost.
func protect() {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil {
		logrus.WithError(err).Warn("the OOM killer may choose crimonitor: lowering oom_score_adj needs CAP_SYS_RESOURCE")
	}
}

// listen takes the socket. A lock beside it tells a running monitor from a socket file that a dead one left.
func listen(path string) (*net.UnixListener, func(), error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, nil, err
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, nil, fmt.Errorf("another crimonitor serves %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("replace stale socket: %w", err)
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	return l, func() {
		_ = os.Remove(path + ".lock")
		_ = lock.Close()
	}, nil
}
