// Package sandbox runs pods and their containers: their life from creation to removal, the records that survive a
// restart, and the repair of what a crash left half-made.
//
// # Model
//
// A pod is a set of namespaces wired to the network and a cgroup; a container is a process tree in them on a snapshot of
// its image, kept by crimonitor. This package decides what should exist and writes it down before it is made (the
// intent); crimonitor tells what does exist. Everything that is made for a pod or a container is undone by one
// function, destroyPod or destroyContainer, which failure, stop, removal and repair share: it tries everything, joins
// the errors, and forgets the record last.
//
// Copies are served; no lock is held while something may block. Operations on one pod or container that exclude each
// other queue on its slot (ops), with the caller's context.
package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"criserver/pkg/cni"
	"criserver/pkg/flight"
	"criserver/pkg/record"
	"criserver/pkg/sandbox/bundle"
	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/monitor/launch"
	"criserver/pkg/sandbox/netcare"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/podspace"
	"criserver/pkg/waiting"
)

// Network wires pods; see package cni for the contracts.
type Network interface {
	Setup(ctx context.Context, p cni.Pod) (cni.Result, error)
	Teardown(ctx context.Context, p cni.Pod) error
	netcare.Network
}

// ErrImageVolume says that an image cannot be mounted into a container.
var ErrImageVolume = bundle.ErrVolume

// Config is what the service needs to know. All paths are absolute.
type Config struct {
	// StateDir holds what does not outlive a reboot: namespaces, bundles, mounts.
	StateDir string
	// CgroupRoot is the parent of the cgroups of pods that come without one, such as "/criserver".
	CgroupRoot string
	// CgroupDriver makes cgroups.
	CgroupDriver driver.Kind
	// CDISpecDirs hold the files that describe CDI devices, a later directory before an earlier one.
	CDISpecDirs []string
	// LogRate and LogBurst limit each container's log, in bytes a second and bytes; a rate of 0 is no limit.
	LogRate, LogBurst int64
	// LogToJournal copies each container's log to systemd's journal.
	LogToJournal bool
	// IgnoreImageVolumes gives containers no directories where their images declare volumes.
	IgnoreImageVolumes bool
	// CheckNetwork is the time between two checks of the network of all pods, which are told of in the log; 0 is never.
	CheckNetwork time.Duration
	// Monitor tells how to start crimonitor.
	Monitor launch.Config
	// Handlers are the runtime handlers.
	Handlers *handler.Set
	// Plugins have a say in what happens; nil is none.
	Plugins plugin.Plugins
	// Checkpoints says how containers are checkpointed and restored.
	Checkpoints checkpoint.Tools
}

// Service holds the pods and containers of a node. Its methods may be called at the same time.
type Service struct {
	config  Config
	network Network
	bundles *bundle.Store
	spaces  podspace.Store
	plugins plugin.Plugins
	monitor *monitor.Client
	ledger  *ledger.Ledger
	parents cgroup.Parents // of pods' cgroups
	// stale is what the last daemon has left of checkpoints.
	stale []checkpoint.Dir
	// hostPaths finds what containers mount.
	hostPaths hostpath.Resolver
	hostFiles hostpath.Files

	podFlights       flight.Group[ledger.PodKey, string]
	containerFlights flight.Group[ledger.ContainerKey, string]

	background sync.WaitGroup
	stop       context.CancelFunc
	// synced is closed once the first reconciliation is done.
	synced chan struct{}

	mu         sync.Mutex
	monitorErr error // why crimonitor does not answer; nil when it does
}

// Limits of operations that run detached from their callers.
const (
	runPodLimit          = 4 * time.Minute // the kubelet waits two request timeouts, 4 min
	CreateContainerLimit = 4 * time.Minute
	restoreLimit         = 10 * time.Minute // of a container's memory
	cleanupLimit         = 2 * time.Minute
	killLimit            = 30 * time.Second
)

// New opens the records in the database, which stays the caller's. Start begins the work.
func New(ctx context.Context, c Config, db *record.DB, n Network, s bundle.Snapshots) (*Service, error) {
	known, err := ledger.Open(ctx, db)
	if err != nil {
		return nil, err
	}
	svc := &Service{
		config: c, network: n,
		monitor: monitor.NewClient(c.Monitor.Socket),
		ledger:  known,
		synced:  make(chan struct{}),

		hostPaths: hostpath.Resolver{Probe: []string{c.Monitor.Binary, "host-path"}}, hostFiles: hostpath.FilesBy(c.Monitor.Binary),
		monitorErr: fmt.Errorf("%w: crimonitor is being connected", ErrUnavailable),
	}
	if svc.plugins = c.Plugins; c.Plugins == nil {
		svc.plugins = plugin.None{}
	}
	svc.bundles = &bundle.Store{Root: filepath.Join(c.StateDir, "containers"), Snapshots: s, IgnoreDeclared: c.IgnoreImageVolumes}
	svc.spaces = podspace.Store{Root: filepath.Join(c.StateDir, "pods"), Helper: c.Monitor.Binary, Paths: &svc.hostPaths}
	for _, dir := range []string{svc.spaces.Root, svc.bundles.Root} {
		if err := makeStateDir(dir); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
	}
	svc.stale, err = c.Checkpoints.Prepare(func(id string) bool {
		_, err := known.Container(id)
		return err == nil
	})
	return svc, err
}

// makeStateDir makes a directory that others can pass, and what is in it not: a set-uid program of an image must not be a set-uid
// program of the host (CVE-2021-41103). Earlier versions had it the other way round.
func makeStateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode()&0o7 != 0 {
			if err := os.Chmod(filepath.Join(dir, e.Name()), info.Mode().Perm()&^0o7); err != nil {
				return err
			}
		}
	}
	return os.Chmod(dir, 0o711)
}

// Start connects to crimonitor, which it starts if none answers, brings records and reality together, and follows the
// containers until Close. It returns when the first reconciliation is done or ctx ends; the service is then usable
// either way, and Ready tells the difference.
func (s *Service) Start(ctx context.Context) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = cancel
	s.background.Go(func() { s.followMonitor(run) })
	s.background.Go(func() { checkpoint.Sweep(run, s.stale) })
	select {
	case <-s.synced:
	case <-ctx.Done():
	}
}

// stopGrace is how long the pods and containers that are being made get at the end of the daemon.
const stopGrace = 5 * time.Second

// errStopping ends what is being made when the daemon ends; it is undone.
var errStopping = fmt.Errorf("%w: criserver stops", ErrUnavailable)

// Stop ends, after a grace, the calls that make pods and containers: what they wait for may never come. It does not wait.
func (s *Service) Stop() {
	time.AfterFunc(stopGrace, func() {
		s.podFlights.End(errStopping)
		s.containerFlights.End(errStopping)
	})
}

// Close waits for the operations under way to end and stops following the containers, which go on. With shutdown,
// crimonitor is ended too if it has no containers.
func (s *Service) Close(ctx context.Context, shutdown bool) error {
	err := waiting.On(ctx, func() { s.podFlights.Wait(); s.containerFlights.Wait() })
	s.stop()
	if err = errors.Join(err, waiting.On(ctx, s.background.Wait)); err != nil {
		return fmt.Errorf("operations are still under way; the next start repairs what they leave: %w", err)
	}
	if shutdown && len(s.ledger.Containers()) == 0 {
		if e := s.monitor.Shutdown(ctx); e == nil {
			cgroup.PruneWait(ctx, s.config.Monitor.Cgroup)
			cgroup.Prune(s.config.CgroupRoot)
			driver.Prune(ctx, &s.parents, s.config.CgroupDriver.PodsPath(s.config.CgroupRoot))
		}
	}
	return nil
}

// Ready tells why containers cannot be run, nil if they can.
func (s *Service) Ready() error {
	s.mu.Lock()
	err := s.monitorErr
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.config.Handlers.Ready()
}

func (s *Service) setMonitorError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.monitorErr = err
}

// Pod returns a pod by its ID or a unique prefix of it.
func (s *Service) Pod(id string) (PodStatus, error) {
	p, err := s.ledger.Pod(id)
	if err != nil {
		return PodStatus{}, err
	}
	return s.ledger.PodStatus(p), nil
}

// Pods returns all pods, in no order.
func (s *Service) Pods() []PodStatus { return s.ledger.Pods() }

// Container returns a container by its ID or a unique prefix of it.
func (s *Service) Container(id string) (ContainerStatus, error) {
	c, err := s.ledger.Container(id)
	if err != nil {
		return ContainerStatus{}, err
	}
	return s.ledger.ContainerStatus(c), nil
}

// Containers returns all containers, in no order.
func (s *Service) Containers() []ContainerStatus { return s.ledger.Containers() }

// idLength is the length of an ID.
const idLength = 64

// newID returns 256 random bits in hexadecimal, the form that tools expect of CRI runtimes.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, see its documentation
	return hex.EncodeToString(b[:])
}

// detached returns a context for cleaning up: it outlives the request but not its own deadline.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
}
