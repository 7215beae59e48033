package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/runtime/dump"
	"criserver/pkg/sandbox/runtime/group"
)

// Checkpoint implements runtime.Checkpointer. Which options the program knows for it is its own affair: these are runc's, which crun
// has too.
func (r *Runtime) Checkpoint(ctx context.Context, id string, to runtime.Images) error {
	err := r.runWithCRIU(ctx, to, runtime.Stdio{}, "checkpoint", "--image-path", to.Dir, "--work-path", to.Work,
		"--leave-running", "--file-locks", id)
	return dump.Undo(ctx, err, to, r.cgroup)
}

// Restore implements runtime.Checkpointer. The cgroups are this runtime's: what an archive says of them is not followed.
func (r *Runtime) Restore(ctx context.Context, id, bundle string, from runtime.Images, io runtime.Stdio) (int, error) {
	spec, err := group.ReadSpec(bundle)
	if err != nil {
		return 0, err
	}
	if spec.Process != nil && spec.Process.Terminal { // it is refused when the container is created
		return 0, errors.New("a terminal is not restored by OCI runtimes beside the built-in one")
	}
	if err := os.MkdirAll(r.Command.Root, 0o711); err != nil {
		return 0, fmt.Errorf("make the OCI runtime's directory: %w", err)
	}
	pidFile := filepath.Join(r.dir, "pid")
	err = r.driven(spec).runWithCRIU(ctx, from, io, "restore", "--image-path", from.Dir, "--work-path", from.Work, "--bundle", bundle,
		"--manage-cgroups-mode", "ignore", "--file-locks", "--pid-file", pidFile, "--detach", id)
	if err != nil {
		return 0, dump.Explain(err, filepath.Join(from.Work, dump.RestoreLog))
	}
	pid, err := readPID(pidFile)
	if err != nil {
		return 0, err
	}
	if err := r.checkCgroup(pid); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // Delete would not find it
		return 0, err
	}
	return pid, nil
}

// checkCgroup looks whether a restored process has come into the cgroup of the container: whose limits are not kept otherwise, and
// which is not stopped with it. runc 1.1.5 leaves it in the caller's on cgroup v2, whatever criu is to do with cgroups.
func (r *Runtime) checkCgroup(pid int) error {
	m, err := r.cgroup()
	if err != nil {
		return err
	}
	pids, err := kill.Pids(group.Dir(m))
	if err != nil {
		return fmt.Errorf("look for the restored process in its cgroup: %w", err)
	}
	if !slices.Contains(pids, pid) {
		return fmt.Errorf("OCI runtime %s has restored the process outside of the container's cgroup", r.Command.Path)
	}
	return nil
}

// runWithCRIU is run for an operation that calls criu: it is not bounded but by ctx.
func (r *Runtime) runWithCRIU(ctx context.Context, images runtime.Images, io runtime.Stdio, operation string, args ...string) error {
	c, err := r.command(ctx, io, operation, args...)
	if err != nil {
		return err
	}
	defer c.close()
	c.Env = append(c.Env, dump.Path(images)) // the last one of a name counts
	if operation == "restore" {
		c.Args = append([]string{images.Helper, "criu", "exec"}, c.Args...)
		c.Path, c.SysProcAttr = images.Helper, dump.OwnMounts()
	}
	return c.failure(ctx, dump.Run(ctx, c.Cmd))
}
