// Package hostpath prepares the host paths that containers mount. They may be on file systems that hang.
package hostpath

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"criserver/pkg/sandbox/spec"
)

// Resolve follows the symlinks in the sources, and makes a directory of a source that does not exist, as the
// hostPath volumes of old Kubernetes releases expect and all runtimes do.
func Resolve(ctx context.Context, mounts []spec.Mount) ([]spec.Mount, error) {
	type result struct {
		mounts []spec.Mount
		err    error
	}
	done := make(chan result, 1)
	at := make(chan string, len(mounts)+1)
	go func() { // a hung network file system holds this goroutine, not the call
		out := make([]spec.Mount, len(mounts))
		for i, m := range mounts {
			at <- m.Source
			var err error
			if m.Source, err = resolve(m.Source); err != nil {
				done <- result{err: fmt.Errorf("mount %s: %w", m.Destination, err)}
				return
			}
			out[i] = m
		}
		done <- result{mounts: out}
	}()
	select {
	case r := <-done:
		return r.mounts, r.err
	case <-ctx.Done():
		var path string
		for len(at) > 0 {
			path = <-at
		}
		return nil, fmt.Errorf("host path %s does not answer: %w", path, context.Cause(ctx))
	}
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
