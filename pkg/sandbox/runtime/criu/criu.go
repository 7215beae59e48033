// Package criu is the inside of the program that calls criu for the built-in runtime, "criserver criu …". It is a process of its
// own since it can be ended when its time is over, and of another program than crimonitor, which is executed for each container,
// and would start more slowly with this in it.
package criu

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	_ "github.com/opencontainers/cgroups/devices" // device rules of cgroup v1 and v2
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime/dump"
)

// Run is the program: "dump" or "restore", and options. What comes of it goes to the descriptor dump.ResultFD, since the three
// standard ones are those of a restored container.
//
// A third operation, "exec", is for a program that restores by itself: it is executed with its arguments in the mount namespace of
// dump.OwnMounts.
func Run(args []string) {
	if len(args) > 1 && args[0] == "exec" {
		err := dump.Slave()
		if err == nil {
			err = unix.Exec(args[1], args[1:], os.Environ())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	unix.CloseOnExec(dump.ResultFD)
	unix.CloseOnExec(dump.ConsoleFD)
	result := os.NewFile(dump.ResultFD, "result")
	logrus.SetOutput(io.Discard) // it repeats criu's log
	pid, err := run(args)
	out := dump.Result{PID: pid}
	if err != nil {
		out.Error = err.Error()
	}
	_ = json.NewEncoder(result).Encode(out) // who asked may have gone
}

func run(args []string) (int, error) {
	if len(args) == 0 {
		return 0, errors.New("want dump or restore")
	}
	var root, id, config string
	var terminal bool
	opts := &libcontainer.CriuOpts{FileLocks: true, StatusFd: -1}
	flags := flag.NewFlagSet("criu "+args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&root, "root", "", "directory of the runtime's state")
	flags.StringVar(&id, "id", "", "ID of the container")
	flags.StringVar(&config, "config", "", "file with the configuration of the container that is restored")
	flags.BoolVar(&terminal, "terminal", false, "the container that is restored has a terminal")
	flags.StringVar(&opts.ImagesDirectory, "images", "", "directory of criu's images")
	flags.StringVar(&opts.WorkDirectory, "work", "", "directory of criu's log")
	if err := flags.Parse(args[1:]); err != nil {
		return 0, err
	}
	switch args[0] {
	case "dump":
		return 0, dumpContainer(root, id, opts)
	case "restore":
		return restoreContainer(root, id, config, terminal, opts)
	}
	return 0, fmt.Errorf("%q is neither dump nor restore", args[0])
}

func dumpContainer(root, id string, opts *libcontainer.CriuOpts) error {
	c, err := libcontainer.Load(root, id)
	if err != nil {
		return err
	}
	opts.LeaveRunning = true
	return c.Checkpoint(opts)
}

// restoreContainer has criu make the container's init, which becomes the child of crimonitor when this process ends.
func restoreContainer(root, id, configFile string, terminal bool, opts *libcontainer.CriuOpts) (int, error) {
	if err := dump.Slave(); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(configFile)
	if err != nil {
		return 0, err
	}
	var config configs.Config
	if err := json.Unmarshal(data, &config); err != nil {
		return 0, fmt.Errorf("decode configuration: %w", err)
	}
	process := &libcontainer.Process{Init: true}
	if terminal {
		process.ConsoleSocket = os.NewFile(dump.ConsoleFD, "console")
	} else {
		process.Stdin, process.Stdout, process.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	c, err := libcontainer.Create(root, id, &config)
	if err != nil {
		return 0, fmt.Errorf("create container: %w", err)
	}
	// The cgroups are this runtime's: what an archive says of them is not followed.
	opts.ManageCgroupsMode = "ignore"
	if err := c.Restore(process, opts); err != nil {
		return 0, err
	}
	return process.Pid()
}
