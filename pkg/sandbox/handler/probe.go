package handler

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
)

// askLimit bounds each question to a runtime.
const askLimit = 10 * time.Second

// leastSpec is the version of the specification that all runtimes know.
const leastSpec = "1.0.0"

// checkpointsTold is the annotation of "features" by which runc and crun tell that they call criu.
const checkpointsTold = "org.opencontainers.runc.checkpoint.enabled"

// builtinSpec and builtinFeatures are what crimonitor's own runtime can do.
var (
	builtinSpec     = specs.Version
	builtinFeatures = Features{RecursiveReadOnlyMounts: true, UserNamespaces: true, Checkpoints: true}
)

// leastMemory is the lowest limit with which runtimes were seen to start a container, by how they name
// themselves: the init process has it until it executes the workload. With cgroup v1 the kernel refuses a lower one; with v2 it kills
// the process, with half a megabyte more still, and with some more now and then. runsc has its
// own kernel there.
var leastMemory = map[string]int64{Builtin: 5 << 19, "runc": 9 << 18, "crun": 3 << 17, "runsc": 44 << 20}

// ask finds out whether a runtime works, and what it can do: by "--version", which all have, and "features", which is young.
func ask(ctx context.Context, c runtime.Command) (u Usable, err error) {
	u.Command = &c
	version, err := output(ctx, c, "--version")
	if err != nil {
		return u, err
	}
	name, _, _ := strings.Cut(version, " ")
	u.LeastMemory = leastMemory[name]
	c.Sandbox = name == "runsc"
	for line := range strings.Lines(version) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "spec: "); ok {
			u.SpecVersion = v
		}
	}
	u.SpecVersion = cmp.Or(u.SpecVersion, leastSpec)
	u.Features.Checkpoints = slices.Contains(strings.Fields(version), "+CRIU") // a crun that has no "features"
	text, err := output(ctx, c, "features")
	var told features.Features
	if err != nil || json.Unmarshal([]byte(text), &told) != nil {
		return u, ctx.Err()
	}
	f := &u.Features
	f.Checkpoints = told.Annotations[checkpointsTold] == "true"
	f.RecursiveReadOnlyMounts = slices.Contains(told.MountOptions, "rro")
	if l := told.Linux; l != nil {
		// Volumes of such pods are ID-mapped mounts.
		idmap := l.MountExtensions != nil && l.MountExtensions.IDMap != nil && l.MountExtensions.IDMap.Enabled != nil &&
			*l.MountExtensions.IDMap.Enabled
		f.UserNamespaces = slices.Contains(l.Namespaces, "user") && idmap
	}
	u.SpecVersion = cmp.Or(told.OCIVersionMax, u.SpecVersion)
	u.Orders = told.PotentiallyUnsafeConfigAnnotations
	return u, nil
}

// output runs the program and returns what it prints.
func output(ctx context.Context, c runtime.Command, question string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, fmt.Errorf("no answer in %s: %w", askLimit, context.DeadlineExceeded))
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Path, slices.Concat([]string{"--root", c.Root}, c.Args, []string{question})...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Dir = "/"
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if said := lines[len(lines)-1]; said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return "", fmt.Errorf("%s %s: %w", c.Path, question, err)
}
