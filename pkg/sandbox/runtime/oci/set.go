// Package oci runs containers with OCI runtimes that are programs: runc, crun, runsc and others that have runc's command
// line. The program ends after each operation, and what it leaves, the init process of a container or a command in one, becomes
// the child of the calling process, which must be a subreaper.
package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/wholefile"
)

// Set knows the runtime of each container, also after this process has died and the next one is asked: it is written down
// below Dir before the runtime is called for the first time.
type Set struct {
	Dir     string
	Builtin runtime.Runtime
}

// record is what is written down of a container.
type record struct {
	Command runtime.Command `json:"command"`
	Bundle  string          `json:"bundle"`
}

// recordFile is in the directory of a container.
const recordFile = "runtime.json"

// Assign gives a new container its runtime; nil is the built-in one. Delete of that runtime ends it.
func (s *Set) Assign(id, bundle string, c *runtime.Command) (runtime.Runtime, error) {
	if c == nil {
		return s.Builtin, nil
	}
	if !filepath.IsLocal(id) || filepath.Base(id) != id {
		return nil, fmt.Errorf("%q is no ID of a container", id)
	}
	r := &Runtime{record: record{Command: *c, Bundle: bundle}, dir: filepath.Join(s.Dir, id)}
	data, err := json.Marshal(r.record)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(r.dir, recordFile)
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, fmt.Errorf("write down the runtime of a container: %w", err)
	}
	if err := wholefile.Write(path, data); err != nil {
		return nil, errors.Join(fmt.Errorf("write down the runtime of a container: %w", err), os.RemoveAll(r.dir))
	}
	return r, nil
}

// Of returns the runtime of a container that was assigned one: the built-in one if nothing is written down.
func (s *Set) Of(id string) (runtime.Runtime, error) {
	if !filepath.IsLocal(id) || filepath.Base(id) != id {
		return nil, fmt.Errorf("%q is no ID of a container", id)
	}
	r := &Runtime{dir: filepath.Join(s.Dir, id)}
	data, err := os.ReadFile(filepath.Join(r.dir, recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return s.Builtin, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r.record)
	}
	if err != nil {
		return nil, fmt.Errorf("read the runtime of container %s: %w", id, err)
	}
	return r, nil
}
