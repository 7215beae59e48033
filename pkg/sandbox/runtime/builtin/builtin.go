// Package builtin runs containers with the OCI runtime library libcontainer, in the calling process: no runtime
// binary is executed but the caller's own: once per container, as its init, and once per command that is run in one.
//
// The main package must import libcontainer/nsenter and call Init first thing, see cmd/crimonitor.
package builtin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/runtime/builtin/enter"
	"criserver/pkg/sandbox/runtime/group"
)

// Runtime implements runtime.Runtime. It keeps nothing of a running container in memory: libcontainer's state file
// has it, since a container's configuration with its seccomp profile is larger than all else a monitor holds.
type Runtime struct {
	root    string
	enterer *enter.Enterer
	rooms   rooms

	// writing is held by who writes a state file.
	writing sync.Mutex

	mu sync.Mutex
	// created are the containers between Create and Start.
	created map[string]*libcontainer.Container
}

// New returns a runtime that keeps its state files below root.
func New(root string) *Runtime {
	return &Runtime{
		root: root, enterer: enter.New(root), rooms: rooms{root: root, all: map[string]*room{}, filters: map[[sha256.Size]byte]*filter{}},
		created: map[string]*libcontainer.Container{},
	}
}

// configuration reads the specification of a bundle, and makes of it what the library takes.
func configuration(id, bundle string) (*specs.Spec, *configs.Config, error) {
	spec, err := group.ReadSpec(bundle)
	if err != nil {
		return nil, nil, err
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: spec, UseSystemdCgroup: group.Systemd(spec)})
	if err != nil {
		return nil, nil, fmt.Errorf("convert specification: %w", err)
	}
	prepareHooks(config, bundle)
	return spec, config, nil
}

// Create implements runtime.Runtime. A mount that does not answer holds the init process and not this one: when ctx ends
// it is killed, and with it goes the wait for it.
func (r *Runtime) Create(ctx context.Context, id, bundle string, io runtime.Stdio) (int, error) {
	spec, config, err := configuration(id, bundle)
	if err != nil {
		return 0, err
	}
	process, err := newProcess(spec.Process, io)
	if err != nil {
		return 0, err
	}
	process.Init = true
	c, err := libcontainer.Create(r.root, id, config)
	if err != nil {
		return 0, fmt.Errorf("create container: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { r.killInit(id, bundle) })
	err = c.Start(process)
	stop()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return 0, errors.Join(err, destroy(c, id, bundle, config))
	}
	pid, err := process.Pid()
	if err != nil {
		return 0, errors.Join(err, destroy(c, id, bundle, config))
	}
	r.mu.Lock()
	r.created[id] = c
	r.mu.Unlock()
	return pid, nil
}

// destroy undoes a Create, and has poststop hooks executed here: the library would wait for whoever holds their output open.
func destroy(c *libcontainer.Container, id, bundle string, config *configs.Config) error {
	var hooks []configs.Command
	for _, h := range config.Hooks[configs.Poststop] {
		if command, ok := h.(configs.CommandHook); ok {
			hooks = append(hooks, *command.Command)
		}
	}
	delete(config.Hooks, configs.Poststop)
	err := c.Destroy()
	poststop(id, bundle, config.Labels, hooks)
	return err
}

// killInit kills what is in the cgroup of a container that is being made.
func (r *Runtime) killInit(id, bundle string) {
	m, err := r.cgroup(id, bundle)
	if err != nil {
		return
	}
	if dir := group.Dir(m); dir != "" {
		_ = kill.Tree(dir) // Delete comes after it and tells
	}
}

// Start implements runtime.Runtime.
func (r *Runtime) Start(_ context.Context, id string) error {
	r.mu.Lock()
	c := r.created[id]
	delete(r.created, id)
	r.mu.Unlock()
	if c == nil {
		return runtime.ErrNotFound
	}
	if err := c.Exec(); err != nil {
		return fmt.Errorf("start init process: %w", err)
	}
	return nil
}

// Kill implements runtime.Runtime.
func (r *Runtime) Kill(_ context.Context, id string) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	if err := c.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
		return fmt.Errorf("kill container: %w", err)
	}
	return nil
}

// OOMKilled implements runtime.Runtime.
func (r *Runtime) OOMKilled(_ context.Context, id string) (bool, error) {
	m, err := r.cgroup(id, "")
	if err != nil {
		return false, err
	}
	return group.OOMKilled(m)
}

// Delete implements runtime.Runtime. It works on the cgroup and the state directory and not through libcontainer's
// Destroy, since that needs a state file, which a Create that was cut off has not written. Poststop hooks come before the state goes: if
// this process dies in the middle, the next one executes them again.
func (r *Runtime) Delete(ctx context.Context, id, bundle string) error {
	r.mu.Lock()
	delete(r.created, id)
	r.mu.Unlock()
	r.rooms.forget(id)
	st, err := r.state(id)
	if err != nil {
		return err
	}
	m, err := st.cgroup(bundle)
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := group.Empty(ctx, m); err != nil {
		return err
	}
	if err := m.Destroy(); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	if st != nil {
		poststop(id, bundle, st.Config.Labels, st.Config.Hooks.Poststop)
	}
	if err := os.RemoveAll(filepath.Join(r.root, id)); err != nil {
		return fmt.Errorf("remove runtime state: %w", err)
	}
	return nil
}

func (r *Runtime) load(id string) (*libcontainer.Container, error) {
	c, err := libcontainer.Load(r.root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil, runtime.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("load container: %w", err)
	}
	return c, nil
}

// state is what Delete needs of libcontainer's state file.
type state struct {
	CgroupPaths map[string]string `json:"cgroup_paths"`
	Config      struct {
		Cgroups *cgroups.Cgroup `json:"cgroups"`
		Labels  []string        `json:"labels"`
		Hooks   struct {
			Poststop []configs.Command `json:"poststop"`
		} `json:"Hooks"`
	} `json:"config"`
}

// state reads the state file; nil if there is none.
func (r *Runtime) state(id string) (*state, error) {
	st := &state{}
	err := readState(r.root, id, st)
	if errors.Is(err, runtime.ErrNotFound) {
		return nil, nil
	}
	return st, err
}

// stateFile is where the library keeps what it knows of a container.
func stateFile(root, id string) string { return filepath.Join(root, id, "state.json") }

// readState reads what v has of a container's state file. runtime.ErrNotFound: there is none.
func readState(root, id string, v any) error {
	data, err := os.ReadFile(stateFile(root, id))
	if errors.Is(err, os.ErrNotExist) {
		return runtime.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("read runtime state: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode runtime state: %w", err)
	}
	return nil
}

// cgroup finds the container's cgroup: by the state file, or else by the bundle.
func (r *Runtime) cgroup(id, bundle string) (cgroups.Manager, error) {
	st, err := r.state(id)
	if err != nil {
		return nil, err
	}
	return st.cgroup(bundle)
}

func (st *state) cgroup(bundle string) (cgroups.Manager, error) {
	if st != nil {
		return manager.NewWithPaths(st.Config.Cgroups, st.CgroupPaths)
	}
	if bundle == "" {
		return nil, runtime.ErrNotFound
	}
	m, err := group.OfBundle(bundle)
	if errors.Is(err, os.ErrNotExist) {
		return nil, runtime.ErrNotFound
	}
	return m, err
}
