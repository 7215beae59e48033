package builtin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/system"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/runtime/builtin/enter"
)

// Exec implements runtime.Runtime.
func (r *Runtime) Exec(ctx context.Context, id string, p *specs.Process, io runtime.Stdio) (runtime.Process, error) {
	pid, err := r.exec(ctx, id, p, io)
	return runtime.Process{PID: pid}, err
}

// exec leaves to libcontainer only what package enter does not do: a command with a terminal, and one in a container with what few have.
func (r *Runtime) exec(ctx context.Context, id string, p *specs.Process, io runtime.Stdio) (int, error) {
	if !plain(p) || !enter.Supported() {
		return r.execSlowly(id, p, io)
	}
	c, err := r.rooms.of(ctx, id)
	if err != nil {
		return 0, err
	}
	if c.special {
		return r.execSlowly(id, p, io)
	}
	pid, err := r.enter(ctx, c, p, io)
	if errors.Is(err, enter.ErrCgroup) {
		// The container may have moved its processes below; libcontainer looks for them.
		return r.execSlowly(id, p, io)
	}
	return pid, err
}

func (r *Runtime) execSlowly(id string, p *specs.Process, io runtime.Stdio) (int, error) {
	c, err := r.load(id)
	if err != nil {
		return 0, err
	}
	if c, err = r.withScore(c, id, p.OOMScoreAdj); err != nil {
		return 0, err
	}
	process, err := newProcess(p, io)
	if err != nil {
		return 0, err
	}
	if err := c.Run(process); err != nil {
		return 0, err
	}
	return process.Pid()
}

// plain tells whether a process asks for nothing that package enter does not know.
func plain(p *specs.Process) bool {
	return !p.Terminal && p.IOPriority == nil && p.Scheduler == nil && p.ExecCPUAffinity == nil
}

func (r *Runtime) enter(ctx context.Context, c *room, p *specs.Process, io runtime.Stdio) (int, error) {
	init, err := c.openInit()
	if err != nil {
		return 0, err
	}
	defer init.Close()
	limits, err := rlimits(p.Rlimits)
	if err != nil {
		return 0, err
	}
	cmd := c.command
	cmd.Init = init
	cmd.Args, cmd.Env, cmd.Cwd = p.Args, p.Env, p.Cwd
	cmd.UID, cmd.GID, cmd.Groups = p.User.UID, p.User.GID, p.User.AdditionalGids
	cmd.NoNewPrivileges = p.NoNewPrivileges
	if p.OOMScoreAdj != nil {
		cmd.OOMScoreAdj = p.OOMScoreAdj
	}
	// What a process does not say is the container's, as libcontainer has it.
	if caps := p.Capabilities; caps != nil {
		cmd.Capabilities = bits(configs.Capabilities(*caps))
	}
	if len(limits) > 0 {
		cmd.Rlimits = limits
	}
	if p.ApparmorProfile != "" {
		cmd.AppArmorProfile = p.ApparmorProfile
	}
	if p.SelinuxLabel != "" {
		cmd.SELinuxLabel = p.SelinuxLabel
	}
	cmd.Stdio = [3]*os.File{io.Stdin, io.Stdout, io.Stderr}
	return r.enterer.Start(ctx, &cmd)
}

// bits drops the capabilities that the kernel does not have.
func bits(c configs.Capabilities) *enter.Capabilities {
	set := func(names []string) (mask uint64) {
		for _, name := range names {
			if n, ok := capabilities()[name]; ok {
				mask |= 1 << n
			}
		}
		return mask
	}
	return &enter.Capabilities{Bounding: set(c.Bounding), Effective: set(c.Effective), Permitted: set(c.Permitted),
		Inheritable: set(c.Inheritable), Ambient: set(c.Ambient)}
}

// capabilities are the kernel's by their names, "CAP_CHOWN".
var capabilities = sync.OnceValue(func() map[string]capability.Cap {
	all, err := capability.ListSupported()
	if err != nil {
		logrus.WithError(err).Error("cannot find the kernel's capabilities: commands get none")
	}
	names := make(map[string]capability.Cap, len(all))
	for _, c := range all {
		names["CAP_"+strings.ToUpper(c.String())] = c
	}
	return names
})

// room is what commands find in a running container. It does not change.
type room struct {
	id string
	// pid and started (in clock ticks since the boot) are those of the init process.
	pid     int
	started uint64
	// special containers are libcontainer's.
	special bool
	command enter.Command
}

// openInit returns a pidfd of the init process, and of no other that has its PID by now.
func (c *room) openInit() (*os.File, error) {
	fd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open init process %d of container %s: %w", c.pid, c.id, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if stat, err := system.Stat(c.pid); err != nil || stat.StartTime != c.started {
		_ = f.Close()
		return nil, fmt.Errorf("container %s has no init process any more: %w", c.id, runtime.ErrNotFound)
	}
	return f, nil
}

// rooms has the containers in which a command was run: to read a container's state takes longer than all else, and is
// large, most of it a seccomp profile that it shares with others.
type rooms struct {
	root string

	mu      sync.Mutex
	all     map[string]*room
	filters map[[sha256.Size]byte]*filter
}

// filter is compiled once.
type filter struct {
	done chan struct{}
	*enter.Filter
	err error
}

// maxFilters bounds how many compiled profiles are kept for containers to come.
const maxFilters = 64

// compileWait bounds the compilation of a profile.
const compileWait = 10 * time.Second

func (r *rooms) of(ctx context.Context, id string) (*room, error) {
	r.mu.Lock()
	c := r.all[id]
	r.mu.Unlock()
	if c != nil {
		return c, nil
	}
	c, err := r.open(ctx, id)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[id] = c
	return c, nil
}

func (r *rooms) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, id)
}

func (r *rooms) open(ctx context.Context, id string) (*room, error) {
	var state libcontainer.State
	err := readState(r.root, id, &state)
	if err != nil {
		return nil, err
	}
	config := &state.Config
	c := &room{id: id, pid: state.InitProcessPid, started: state.InitProcessStartTime, special: special(&state)}
	if c.special {
		return c, nil
	}
	c.command = enter.Command{
		Cgroups: directories(state.CgroupPaths), Unified: cgroups.IsCgroup2UnifiedMode(),
		AppArmorProfile: config.AppArmorProfile, SELinuxLabel: config.ProcessLabel,
		Rlimits: config.Rlimits, Umask: config.Umask, OOMScoreAdj: config.OomScoreAdj,
	}
	if !config.NoNewKeyring {
		c.command.Keyring = "_ses." + id // libcontainer's name for it
	}
	if caps := config.Capabilities; caps != nil {
		c.command.Capabilities = bits(*caps)
	}
	if p := config.Personality; p != nil {
		domain := uint32(p.Domain)
		c.command.Personality = &domain
	}
	if config.Seccomp != nil {
		if c.command.Filter, err = r.filter(ctx, config.Seccomp); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			logrus.WithError(err).WithField("container", id).Warn("commands in a container start slowly")
			c.special = true
		}
	}
	return c, nil
}

// special tells of a container with what package enter does not know.
func special(s *libcontainer.State) bool {
	c := &s.Config
	return c.Namespaces.Contains(configs.NEWUSER) || c.Namespaces.Contains(configs.NEWTIME) || c.RootlessCgroups || s.IntelRdtPath != "" ||
		c.Scheduler != nil || c.IOPriority != nil || c.ExecCPUAffinity != nil || c.MemoryPolicy != nil ||
		c.Seccomp != nil && (c.Seccomp.ListenerPath != "" ||
			slices.ContainsFunc(c.Seccomp.Syscalls, func(s *configs.Syscall) bool { return s.Action == configs.Notify }))
}

// directories returns each directory once: controllers that share a hierarchy have names of their own.
func directories(paths map[string]string) []string {
	unique := map[string]struct{}{}
	for _, p := range paths {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			p = real
		}
		unique[p] = struct{}{}
	}
	return slices.Sorted(maps.Keys(unique))
}

// filter compiles a profile, or waits for who does.
func (r *rooms) filter(ctx context.Context, profile *configs.Seccomp) (*enter.Filter, error) {
	data, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(data)
	r.mu.Lock()
	f := r.filters[key]
	if f == nil {
		f = &filter{done: make(chan struct{})}
		if len(r.filters) >= maxFilters {
			clear(r.filters)
		}
		r.filters[key] = f
		go r.compile(key, f, profile)
	}
	r.mu.Unlock()
	select {
	case <-f.done:
		return f.Filter, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (r *rooms) compile(key [sha256.Size]byte, f *filter, profile *configs.Seccomp) {
	ctx, cancel := context.WithTimeout(context.Background(), compileWait)
	defer cancel()
	f.Filter, f.err = enter.Compile(ctx, profile)
	if f.err != nil {
		r.mu.Lock()
		delete(r.filters, key)
		r.mu.Unlock()
	}
	close(f.done)
}
