// Package nri lets NRI plugins (Node Resource Interface, github.com/containerd/nri) have a say in pods and containers: it implements
// the contract of package plugin with the NRI module's adaptation package, which keeps the plugins.
//
// One event is sent at a time, since the adaptation package has one lock for all; who waits for a turn does so with a context. A
// plugin that does not answer in time, or dies, is disconnected, and the operation goes on without it (unless it has asked for
// another failure policy). Updates of containers that plugins ask for are made one after the other, in the order in which they were
// asked for, and never while an event is being sent.
//
// A plugin is told of what it knows: what was there when it connected (Synchronize), or was announced to it. No event is sent while a
// plugin is synchronized, so that it misses none and gets none twice.
package nri

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/spec"
)

// Config is what an operator says of NRI. All paths are absolute.
type Config struct {
	// Version is the runtime's, which plugins are told.
	Version string
	// Socket is where plugins connect; its directory is made, for root only. NoConnections leaves only those that are launched.
	Socket        string
	NoConnections bool
	// PluginDir has plugins to launch at the start, by names such as "10-logger"; ConfigDir what they are configured with.
	PluginDir, ConfigDir string
	// Registration and Request are how long a plugin may take to register and to answer. They hold for the process.
	Registration, Request time.Duration
	// Validator is the default validator of adjustments.
	Validator Validator
	// CDISpecDirs hold the files that describe CDI devices.
	CDISpecDirs []string
}

// Validator is what the default validator refuses.
type Validator = validator.DefaultValidatorConfig

// Runtime is what plugins are told of and may change; see sandbox.Service.
type Runtime interface {
	Pod(id string) (ledger.PodStatus, error)
	Pods() []ledger.PodStatus
	PodNamespaces(id string) []specs.LinuxNamespace
	Container(id string) (ledger.ContainerStatus, error)
	Containers() []ledger.ContainerStatus
	ContainerSpec(id string) (*specs.Spec, error)
	LimitContainer(ctx context.Context, id string, change spec.Resources) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
}

// Plugins are the NRI plugins of a node.
type Plugins struct {
	config     Config
	runtime    Runtime
	adaptation *adaptation.Adaptation
	known      *known
	updates    *queue

	// turn is held by the event that is being sent.
	turn chan struct{}
	// begin does something in the background, until stop, unless it is too late for that.
	begin      func(fn func(ctx context.Context))
	stop       context.CancelFunc
	background sync.WaitGroup
	mu         sync.Mutex
	closed     bool // nothing more is begun in the background
}

var _ plugin.Plugins = (*Plugins)(nil)

// New prepares for plugins. Until Start no event is sent.
func New(c Config) (*Plugins, error) {
	logged()
	adaptation.SetPluginRegistrationTimeout(c.Registration)
	adaptation.SetPluginRequestTimeout(c.Request)
	p := &Plugins{config: c, turn: make(chan struct{}, 1), updates: newQueue(), known: newKnown()}
	run, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.begin = func(fn func(context.Context)) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.closed {
			p.background.Go(func() { fn(run) })
		}
	}
	options := []adaptation.Option{
		adaptation.WithSocketPath(c.Socket), adaptation.WithPluginPath(c.PluginDir), adaptation.WithPluginConfigPath(c.ConfigDir),
		adaptation.WithDefaultValidator(&c.Validator),
		adaptation.WithTTRPCOptions(
			[]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(p.evictAnswered)},
			[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.evictAsked)}),
	}
	if c.NoConnections {
		options = append(options, adaptation.WithDisabledExternalConnections())
	}
	var err error
	if p.adaptation, err = adaptation.New("criserver", c.Version, p.synchronize, p.unsolicited, options...); err != nil {
		return nil, fmt.Errorf("set up NRI: %w", err)
	}
	return p, nil
}

// Start launches the plugins of the directory, and lets others connect. They are told of what is there, which the daemon before
// has announced to theirs. It comes before anything new is made.
func (p *Plugins) Start(ctx context.Context, r Runtime) error {
	p.runtime = r
	p.known.load(r.Pods(), r.Containers())
	p.begin(func(ctx context.Context) { p.updates.work(ctx, p.update) })
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.release()
	if !p.config.NoConnections {
		if err := checkSocket(p.config.Socket); err != nil {
			return fmt.Errorf("start NRI: %w", err)
		}
	}
	if err := p.adaptation.Start(); err != nil {
		return fmt.Errorf("start NRI: %w", err)
	}
	if p.config.NoConnections {
		return nil
	}
	return os.Chmod(p.config.Socket, 0o600)
}

// Close lets the plugins go, and waits for what goes on in the background. It needs not have been started.
func (p *Plugins) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	err := p.take(ctx)
	if err == nil {
		p.adaptation.Stop()
		p.release()
	}
	p.background.Wait()
	return err
}

// take waits for the turn to send something.
func (p *Plugins) take(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("NRI plugins have not answered to what was before: %w", context.Cause(ctx))
	}
}

func (p *Plugins) release() { <-p.turn }

// logged has the NRI module log by logger: its setting is the process's.
var logged = sync.OnceFunc(func() { nrilog.Set(logger{}) })

// logger marks what the NRI module logs.
type logger struct{}

func (logger) Debugf(_ context.Context, format string, args ...any) {
	logrus.Debugf("NRI: "+format, args...)
}
func (logger) Infof(_ context.Context, format string, args ...any) {
	logrus.Infof("NRI: "+format, args...)
}
func (logger) Warnf(_ context.Context, format string, args ...any) {
	logrus.Warnf("NRI: "+format, args...)
}
func (logger) Errorf(_ context.Context, format string, args ...any) {
	logrus.Errorf("NRI: "+format, args...)
}
