// Package probe asks a file system for a path, which may take for ever: it is for a process that can be left behind.
package probe

import (
	"fmt"
	"os"
	"path/filepath"
)

// Resolve follows the symlinks in a path, makes a directory of what does not exist, as the hostPath volumes of old Kubernetes
// releases expect and all runtimes do, and sees that what is there answers.
func Resolve(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if os.IsNotExist(err) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", fmt.Errorf("make host path %s: %w", path, err)
		}
		resolved, err = filepath.EvalSymlinks(path)
	}
	if err == nil {
		_, err = os.Stat(resolved)
	}
	if err != nil {
		return "", fmt.Errorf("resolve host path %s: %w", path, err)
	}
	return resolved, nil
}
