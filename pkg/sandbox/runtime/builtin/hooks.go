package builtin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/utils"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

const (
	// hookLimit is how long a hook may take that does not say.
	hookLimit = time.Minute
	// hookDrain is how long the output of a hook that has ended is waited for: who it has left behind may hold that open.
	hookDrain = time.Second
	// maxHookOutput is how much of what a hook that fails has said is told of.
	maxHookOutput = 1024
)

// prepareHooks gives the hooks of a configuration a limit that have none, and the container's bundle, which the library takes for its
// working directory.
func prepareHooks(config *configs.Config, bundle string) {
	limit := hookLimit
	for _, list := range config.Hooks {
		for _, h := range list {
			if c, ok := h.(configs.CommandHook); ok && c.Timeout == nil {
				c.Timeout = &limit
			}
		}
	}
	for i, l := range config.Labels {
		if strings.HasPrefix(l, "bundle=") {
			config.Labels[i] = "bundle=" + bundle
		}
	}
}

// poststop executes the hooks of a container whose processes are gone (OCI runtime-spec, runtime.md, "Lifecycle", 13): one that fails
// is told of, and the others are executed.
func poststop(id, bundle string, labels []string, hooks []configs.Command) {
	if len(hooks) == 0 {
		return
	}
	_, annotations := utils.Annotations(labels)
	state := &specs.State{Version: specs.Version, ID: id, Status: specs.StateStopped, Bundle: bundle, Annotations: annotations}
	for _, h := range hooks {
		if err := run(h, state); err != nil {
			logrus.WithError(err).WithFields(logrus.Fields{"container": id, "hook": h.Path}).Warn("a poststop hook has failed")
		}
	}
}

// run executes a hook, which gets the state on stdin, until its time is over. Nobody can end it before: what it has begun would be
// half done.
func run(h configs.Command, state *specs.State) error {
	input, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	limit := hookLimit
	if h.Timeout != nil {
		limit = *h.Timeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env, cmd.Dir = h.Env, h.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = hookDrain
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) { // it has succeeded
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("not done after %s", limit)
	}
	if err == nil {
		return nil
	}
	said := output.Bytes()
	return fmt.Errorf("hook %s: %w: %s", h.Path, err, bytes.TrimSpace(said[max(0, len(said)-maxHookOutput):]))
}
