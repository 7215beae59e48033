package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

const (
	// pipeDelay is how long the output of a plugin that ended, or was killed, may stay open in a process it left behind.
	pipeDelay = 2 * time.Second
	busyDelay = 100 * time.Millisecond
	busyTries = 10
)

// runner is libcni's Exec: it finds the built-in plugin in process and all others on disk.
type runner struct {
	version.PluginDecoder
	builtin *builtin // nil if there is none
}

// FindInPath returns the path of a plugin, or the name of the built-in one as is.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	if plugin == builtinType && r.builtin != nil {
		return builtinType, nil
	}
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("CNI plugin %q is not in %s", plugin, strings.Join(dirs, ", "))
	}
	return path, nil
}

// ExecPlugin runs a plugin. When ctx ends it is killed with all its children, such as an IPAM plugin.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if path == builtinType && r.builtin != nil {
		return r.builtin.exec(ctx, stdin, environ)
	}
	for try := 1; ; try++ {
		out, err := execOnce(ctx, path, stdin, environ)
		// The plugin is being installed over.
		if !errors.Is(err, unix.ETXTBSY) || try == busyTries {
			return out, err
		}
		select {
		case <-time.After(busyDelay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func execOnce(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	// A plugin must not outlive the process in an ADD: the DEL of the next process would come before its end. The signal
	// comes with the end of the thread that started it (prctl(2), PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = pipeDelay
	err := cmd.Run()
	if ctx.Err() != nil && err != nil {
		return nil, fmt.Errorf("CNI plugin %s was ended: %w", filepath.Base(path), ctx.Err())
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, pluginError(filepath.Base(path), err, stdout.Bytes(), stderr.Bytes())
	}
	if stderr.Len() > 0 {
		logrus.WithField("plugin", path).Debug(strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// pluginError is the error that a plugin prints (CNI SPEC.md, Error), or what can be told without one.
func pluginError(name string, err error, stdout, stderr []byte) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("run CNI plugin %s: %w", name, err)
	}
	printed := &types.Error{}
	if json.Unmarshal(stdout, printed) == nil && printed.Msg != "" {
		return printed
	}
	text := strings.TrimSpace(string(stdout) + "\n" + string(stderr))
	if text == "" {
		text = "no message"
	}
	return fmt.Errorf("CNI plugin %s: %w: %s", name, err, text)
}
