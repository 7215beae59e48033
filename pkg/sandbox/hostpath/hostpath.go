// Package hostpath prepares the host paths that containers mount. They may be on file systems that hang.
package hostpath

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"criserver/pkg/sandbox/spec"
)

// Ask calls fn, which works on a host path, in a goroutine of its own: a hung network file system holds that, not the call,
// which ends with ctx and names the path.
func Ask[T any](ctx context.Context, path string, fn func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := fn()
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("host path %s does not answer: %w", path, context.Cause(ctx))
	}
}

// Resolve follows the symlinks in the sources, and makes a directory of a source that does not exist, as the
// hostPath volumes of old Kubernetes releases expect and all runtimes do.
func Resolve(ctx context.Context, mounts []spec.Mount) ([]spec.Mount, error) {
	out := make([]spec.Mount, len(mounts))
	for i, m := range mounts {
		source, err := Ask(ctx, m.Source, func() (string, error) { return resolve(m.Source) })
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		m.Source = source
		out[i] = m
	}
	return out, nil
}

func resolve(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if os.IsNotExist(err) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", fmt.Errorf("make host path: %w", err)
		}
		return filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("resolve host path: %w", err)
	}
	return resolved, nil
}
