package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/cgroup/score"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/runtime/group"
)

// Limits of the runtime's operations. Hooks run in create, start and delete.
const (
	createLimit = 2 * time.Minute
	startLimit  = time.Minute
	execLimit   = time.Minute
	killLimit   = 10 * time.Second
	deleteLimit = time.Minute
)

// Runtime implements runtime.Runtime for one container.
type Runtime struct {
	record
	dir string
}

// Create implements runtime.Runtime.
func (r *Runtime) Create(ctx context.Context, id, bundle string, io runtime.Stdio) (int, error) {
	pid, err := r.create(ctx, id, bundle, io)
	if err != nil {
		return 0, errors.Join(err, r.Delete(context.WithoutCancel(ctx), id, bundle))
	}
	return pid, nil
}

func (r *Runtime) create(ctx context.Context, id, bundle string, io runtime.Stdio) (int, error) {
	if err := os.MkdirAll(r.Command.Root, 0o711); err != nil {
		return 0, fmt.Errorf("make the OCI runtime's directory: %w", err)
	}
	pidFile := filepath.Join(r.dir, "pid")
	spec, err := group.ReadSpec(bundle)
	if err != nil {
		return 0, err
	}
	var size *specs.Box
	if spec.Process != nil {
		size = spec.Process.ConsoleSize
	}
	err = r.driven(spec).launch(ctx, createLimit, terminal{r.dir, size}, io, "create", "--bundle", bundle, "--pid-file", pidFile, id)
	if err != nil {
		return 0, err
	}
	return readPID(pidFile)
}

// driven is the runtime that makes a container's cgroup by the driver that the specification is for. The program finds that in its own
// state afterwards.
func (r *Runtime) driven(spec *specs.Spec) *Runtime {
	if !group.Systemd(spec) {
		return r
	}
	with := *r
	with.Command.Args = append(slices.Clone(r.Command.Args), "--systemd-cgroup")
	return &with
}

// Start implements runtime.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) error {
	return r.run(ctx, startLimit, runtime.Stdio{}, "start", id)
}

// Exec implements runtime.Runtime. The end of ctx does not end the program: what it has begun then would be left.
func (r *Runtime) Exec(ctx context.Context, id string, p *specs.Process, io runtime.Stdio) (runtime.Process, error) {
	ctx = context.WithoutCancel(ctx)
	data, err := json.Marshal(p)
	if err != nil {
		return runtime.Process{}, err
	}
	dir, err := os.MkdirTemp(r.dir, "exec-")
	if err != nil {
		return runtime.Process{}, fmt.Errorf("execute in container: %w", err)
	}
	defer os.RemoveAll(dir)
	process, pidFile, insideFile := filepath.Join(dir, "process.json"), filepath.Join(dir, "pid"), filepath.Join(dir, "inside")
	if err := os.WriteFile(process, data, 0o600); err != nil {
		return runtime.Process{}, fmt.Errorf("execute in container: %w", err)
	}
	args := []string{"--process", process, "--pid-file", pidFile, "--detach"}
	if r.Command.Sandbox {
		args = append(args, "--internal-pid-file", insideFile)
	}
	err = r.launch(ctx, execLimit, terminal{dir, p.ConsoleSize}, io, "exec", append(args, id)...)
	var made runtime.Process
	var perr, ierr error
	made.PID, perr = readPID(pidFile)
	if r.Command.Sandbox {
		made.Inside, ierr = readPID(insideFile)
	}
	if err == nil {
		err = errors.Join(perr, ierr)
	}
	if err != nil {
		return runtime.Process{}, errors.Join(err, r.endCommand(ctx, id, made))
	}
	if p.OOMScoreAdj != nil && !r.Command.Sandbox {
		// An update may have changed it, of which the program knows nothing: it gives a command what the container was made with.
		if err := score.SetTree(made.PID, *p.OOMScoreAdj); err != nil {
			logrus.WithError(err).WithField("container", id).Warn("a command may have another oom_score_adj than its container")
		}
	}
	return made, nil
}

// endCommand ends what was made of a command that has failed, as when it was cut off: nobody would ask for it.
func (r *Runtime) endCommand(ctx context.Context, id string, made runtime.Process) error {
	if made.PID != 0 {
		_ = unix.Kill(made.PID, unix.SIGKILL)
	}
	if made.Inside == 0 {
		return nil
	}
	// It lives on without the program that stands for it.
	return r.SignalCommand(ctx, id, made.Inside, unix.SIGKILL, true)
}

// Kill implements runtime.Runtime. What the runtime cannot kill is killed by its cgroup.
func (r *Runtime) Kill(ctx context.Context, id string) error {
	m, err := r.cgroup()
	if errors.Is(err, os.ErrNotExist) {
		return runtime.ErrNotFound
	}
	if err != nil {
		return err
	}
	// The usual case at the end of a container.
	if pids, err := kill.Pids(group.Dir(m)); err == nil && len(pids) == 0 {
		return nil
	}
	if r.Command.Sandbox { // whose processes are the program's own
		return group.Empty(ctx, m)
	}
	err = r.run(ctx, killLimit, runtime.Stdio{}, "kill", "--all", id, "KILL")
	if err == nil {
		return nil
	}
	logrus.WithError(err).WithField("container", id).Warn("the OCI runtime cannot kill a container; its cgroup is killed")
	return group.Empty(ctx, m)
}

// OOMKilled implements runtime.Runtime.
func (r *Runtime) OOMKilled(context.Context, string) (bool, error) {
	m, err := r.cgroup()
	if errors.Is(err, os.ErrNotExist) {
		return false, runtime.ErrNotFound
	}
	if err != nil {
		return false, err
	}
	return group.OOMKilled(m)
}

// Delete implements runtime.Runtime. Without a working runtime program it removes processes, cgroup and state by itself.
func (r *Runtime) Delete(ctx context.Context, id, _ string) error {
	if _, err := os.Stat(r.dir); errors.Is(err, os.ErrNotExist) {
		return nil // deleted before
	}
	failed := r.run(ctx, deleteLimit, runtime.Stdio{}, "delete", "--force", id)
	m, err := r.cgroup()
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := group.Empty(ctx, m); err != nil {
			return err
		}
		if err := m.Destroy(); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	if failed != nil {
		if err := r.forget(id, failed); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(r.dir); err != nil {
		return fmt.Errorf("remove runtime state: %w", err)
	}
	return nil
}

// forget removes the state of a container without processes that the runtime has not deleted. Of one that does not know the
// container there is none.
func (r *Runtime) forget(id string, failed error) error {
	state := filepath.Join(r.Command.Root, id)
	if _, err := os.Lstat(state); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if !errors.Is(failed, fs.ErrNotExist) && !errors.Is(failed, fs.ErrPermission) {
		return failed
	}
	logrus.WithError(failed).WithField("container", id).
		Warn("the OCI runtime cannot delete a container whose processes have ended; its state is removed")
	if err := os.RemoveAll(state); err != nil {
		return errors.Join(failed, fmt.Errorf("remove the state of the OCI runtime: %w", err))
	}
	return nil
}

func (r *Runtime) cgroup() (cgroups.Manager, error) { return group.OfBundle(r.Bundle) }

func readPID(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the PID that the OCI runtime has written: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("the OCI runtime has written %q as a PID", data)
	}
	return pid, nil
}
