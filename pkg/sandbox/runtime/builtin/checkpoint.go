package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/cgroups"

	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/runtime/dump"
)

// Checkpoint implements runtime.Checkpointer.
func (r *Runtime) Checkpoint(ctx context.Context, id string, to runtime.Images) error {
	_, err := r.help(ctx, to, runtime.Stdio{}, "dump", "--id", id)
	return dump.Undo(ctx, err, to, func() (cgroups.Manager, error) { return r.cgroup(id, "") })
}

// Restore implements runtime.Checkpointer.
func (r *Runtime) Restore(ctx context.Context, id, bundle string, from runtime.Images, io runtime.Stdio) (int, error) {
	_, config, err := configuration(id, bundle)
	if err != nil {
		return 0, err
	}
	data, err := json.Marshal(config)
	if err != nil {
		return 0, fmt.Errorf("encode configuration of %s: %w", id, err)
	}
	path := filepath.Join(from.Work, "config.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return 0, fmt.Errorf("write configuration: %w", err)
	}
	result, err := r.help(ctx, from, io, "restore", "--id", id, "--config", path)
	if err != nil {
		return 0, dump.Explain(err, filepath.Join(from.Work, dump.RestoreLog))
	}
	return result.PID, nil
}

// help executes the helper. A restored init has become a child of this process when it returns.
func (r *Runtime) help(ctx context.Context, images runtime.Images, stdio runtime.Stdio, operation string, args ...string) (dump.Result, error) {
	var result dump.Result
	answer, theirs, err := os.Pipe()
	if err != nil {
		return result, fmt.Errorf("call criu: %w", err)
	}
	defer answer.Close()
	defer theirs.Close()
	options := []string{"criu", operation, "--root", r.root, "--images", images.Dir, "--work", images.Work}
	cmd := exec.CommandContext(ctx, images.Helper, append(options, args...)...)
	cmd.Dir, cmd.Env = "/", []string{dump.Path(images)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.Streams()
	cmd.ExtraFiles = []*os.File{theirs}
	if operation == "restore" {
		cmd.SysProcAttr = dump.OwnMounts()
	}
	if stdio.Console != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, stdio.Console)
		cmd.Args = append(cmd.Args, "--terminal")
	}
	_ = dump.Run(ctx, cmd) // its answer tells
	if ctx.Err() != nil {
		return result, context.Cause(ctx) // a container that was restored all the same is the caller's to delete
	}
	_ = theirs.Close()
	data, err := io.ReadAll(io.LimitReader(answer, maxAnswer))
	if err == nil {
		err = json.Unmarshal(data, &result)
	}
	switch {
	case err != nil:
		return result, fmt.Errorf("the helper %s has not answered: %w", images.Helper, err)
	case result.Error != "":
		return result, errors.New(result.Error)
	}
	return result, nil
}

// maxAnswer bounds what is read of the helper's answer.
const maxAnswer = 64 << 10
