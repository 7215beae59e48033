package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/sirupsen/logrus"

	"criserver/pkg/cni/netns"
)

const (
	undoLimit   = time.Minute
	statusLimit = 5 * time.Second
)

// Network attaches pods. Its methods may be called at the same time; those for one pod queue.
type Network struct {
	config  Config
	configs *configs
	chains  *chains
	records records
	builtin *builtin
	pods    slots
	// turns keep the plugins' GC, which would take the addresses of pods that come up meanwhile for garbage, apart.
	turns turns

	stop   context.CancelFunc
	worker sync.WaitGroup

	mu     sync.Mutex
	ready  error
	recent map[string]time.Time // pods set up in this process, for Config.GCGrace
}

// New opens the network and looks at its state once, which takes 5 s at most. It fails if the configuration of the
// built-in network is invalid or a directory of its own cannot be used; a bad configuration of the operator's is for
// Ready to tell. Close ends its background work.
func New(ctx context.Context, c Config) (*Network, error) {
	c = c.withDefaults()
	rec, err := openRecords(filepath.Join(c.DataDir, "attachments"))
	if err != nil {
		return nil, fmt.Errorf("open attachment records: %w", err)
	}
	if err := os.MkdirAll(c.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("make CNI cache: %w", err)
	}
	b, err := newBuiltin(c.Builtin, filepath.Join(c.DataDir, "builtin"))
	if err != nil {
		return nil, err
	}
	n := &Network{
		config:  c,
		configs: &configs{dir: c.ConfDir},
		chains:  newChains(c.BinDirs, c.CacheDir, &runner{builtin: b}),
		records: rec,
		builtin: b,
		pods:    slots{all: map[string]*slot{}},
		recent:  map[string]time.Time{},
	}
	if !c.Builtin.Disabled {
		if n.configs.fallback, err = builtinList(); err != nil {
			return nil, err
		}
	}
	w := watch{network: n}
	w.look(ctx)
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = cancel
	n.worker.Go(func() { w.run(run) })
	return n, nil
}

// Close ends the background work. The network of the pods stays; without pods nothing does.
func (n *Network) Close() error {
	n.stop()
	n.worker.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	return n.builtin.bridge.Close(ctx)
}

// Ready returns nil if pods can be set up, or why not: an error that is ErrNotReady. The answer is at most
// Config.StatusInterval old.
func (n *Network) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

// Setup switches on the pod's loopback interface and attaches the pod to the network. A pod that is attached already,
// by a Setup that was cut off, is taken down first. After an error nothing of the attachment is left, or, if the error
// says so, what is left is removed by Teardown or GC. Errors may be ErrInvalid, ErrNotReady, ErrPortTaken or ErrExhausted.
func (n *Network) Setup(ctx context.Context, p Pod) (Result, error) {
	if err := p.validate(); err != nil {
		return Result{}, err
	}
	if !netns.Exists(p.NetNS) {
		return Result{}, fmt.Errorf("pod %s: no network namespace at %q", p.ID, p.NetNS)
	}
	release, err := n.pods.acquire(ctx, p.ID)
	if err != nil {
		return Result{}, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer release()
	leave, err := n.turns.enter(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer leave()
	n.protect(p.ID)
	defer n.protect(p.ID)

	list, err := n.configs.current()
	if err != nil {
		return Result{}, err
	}
	if err := n.detach(ctx, p); err != nil {
		return Result{}, fmt.Errorf("take down earlier network of pod %s: %w", p.ID, err)
	}
	return n.attach(ctx, list, p)
}

func (n *Network) attach(ctx context.Context, list *libcni.NetworkConfigList, p Pod) (Result, error) {
	a, err := newAttachment(list, p)
	if err != nil {
		return Result{}, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	if b, _ := bandwidthOf(p.Annotations); b != (bandwidth{}) && a.Capabilities["bandwidth"] == nil {
		logrus.WithFields(logrus.Fields{"pod": p.ID, "name": p.Namespace + "/" + p.Name, "network": a.Network}).Warn(
			"the pod's bandwidth is not limited: no plugin of the network declares the capability bandwidth")
	}
	if err := netns.LoopbackUp(p.NetNS); err != nil {
		return Result{}, err
	}
	if err := n.records.write(a); err != nil {
		return Result{}, err
	}
	result, err := n.chains.add(ctx, a)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		if undo := n.detach(ctx, p); undo != nil {
			err = errors.Join(err, fmt.Errorf("undo: %w", undo))
		}
		return Result{}, err
	}
	return result, nil
}

// Teardown detaches the pod with the configuration it was attached with. Only p.ID is needed, and p.NetNS unless it is
// gone. It is no error if the pod is not attached. A plugin that fails or hangs keeps no other one from its DEL; the errors
// are joined, and the pod stays attached for another Teardown, or GC. A plugin that is not installed any more is passed
// over with a warning in the log.
func (n *Network) Teardown(ctx context.Context, p Pod) error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("%w: pod id %q: %w", ErrInvalid, p.ID, err)
	}
	release, err := n.pods.acquire(ctx, p.ID)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer release()
	leave, err := n.turns.enter(ctx)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer leave()
	if err := n.detach(ctx, p); err != nil {
		return err
	}
	n.unprotect(p.ID)
	return nil
}

// detach needs the pod's slot.
func (n *Network) detach(ctx context.Context, p Pod) error {
	a, err := n.records.read(p.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the record is written before anything is done
	}
	if err != nil {
		logrus.WithError(err).WithField("pod", p.ID).Warn("the record of the pod's network is damaged")
		if a, err = n.reconstruct(p); err != nil {
			return fmt.Errorf("pod %s: %w", p.ID, err)
		}
	}
	if p.NetNS != "" {
		a.NetNS = p.NetNS
	}
	if err := n.chains.del(ctx, a); err != nil {
		return err
	}
	return n.records.remove(p.ID)
}

// reconstruct makes the attachment of a pod whose record a power cut damaged: from libcni's cache, or, if that is lost
// too, as if the pod were set up now.
func (n *Network) reconstruct(p Pod) (attachment, error) {
	cached, err := n.chains.GetCachedAttachments(p.ID)
	if err != nil {
		return attachment{}, fmt.Errorf("read CNI cache: %w", err)
	}
	if len(cached) > 0 {
		return cachedAttachment(cached[0])
	}
	list, err := n.configs.current()
	if err != nil {
		return attachment{}, err
	}
	return newAttachment(list, p)
}

// Check asks the plugins whether the pod is connected as they left it. It returns nil for a network whose version has
// no CHECK or that disables it.
func (n *Network) Check(ctx context.Context, p Pod) error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("pod id %q: %w", p.ID, err)
	}
	release, err := n.pods.acquire(ctx, p.ID)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer release()
	a, err := n.records.read(p.ID)
	if err != nil {
		return fmt.Errorf("pod %s is not attached: %w", p.ID, err)
	}
	list, err := a.list()
	if err != nil {
		return err
	}
	err = n.chains.CheckNetworkList(ctx, list, a.runtimeConf())
	if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fmt.Errorf("check pod %s on network %s: %w", p.ID, a.Network, err)
	}
	return nil
}

// GC takes down all pods but those whose ids are live and those set up within Config.GCGrace, restores what is missing
// of the built-in network, and runs GC of the operator's plugins, which pods that come and go need not wait for. It goes
// past errors and joins them.
func (n *Network) GC(ctx context.Context, live []string) error {
	ids, err := n.records.ids()
	errs := []error{err}
	ids = append(ids, n.builtin.bridge.Pods()...)
	cached, err := n.chains.GetCachedAttachments("")
	errs = append(errs, err)
	for _, c := range cached {
		ids = append(ids, c.ContainerID)
	}
	slices.Sort(ids)
	// A pod that is newer than the list of the live ones is protected now, but may not be when its turn comes.
	gone := slices.DeleteFunc(slices.Compact(ids), func(id string) bool { return slices.Contains(live, id) || n.protected(id) })
	var stuck []string
	for _, id := range gone {
		if err := n.collect(ctx, id); err != nil {
			stuck = append(stuck, id)
			errs = append(errs, fmt.Errorf("take down pod %s: %w", id, err))
		}
	}
	if n.builtin.unusable == nil {
		errs = append(errs, n.builtin.bridge.Repair(ctx))
	}
	errs = append(errs, n.collectPlugins(ctx, stuck))
	return errors.Join(errs...)
}

// collect takes down a pod unless it is protected, which is known when no Setup of it is in flight.
func (n *Network) collect(ctx context.Context, id string) error {
	release, err := n.pods.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	leave, err := n.turns.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if n.protected(id) {
		return nil
	}
	logrus.WithField("pod", id).Info("taking down the network of a pod that is gone")
	if err := n.detach(ctx, Pod{ID: id}); err != nil {
		return err
	}
	// What is still there is of a pod whose record a power cut took.
	cached, err := n.chains.GetCachedAttachments(id)
	if err != nil {
		return fmt.Errorf("read CNI cache: %w", err)
	}
	for _, c := range cached {
		a, err := cachedAttachment(c)
		if err == nil {
			err = n.chains.del(ctx, a)
		}
		if err != nil {
			return err
		}
	}
	return n.builtin.bridge.Del(ctx, id)
}

// collectPlugins runs GC of the plugins of the operator's network. Pods that are gone and stuck in their DEL are garbage.
func (n *Network) collectPlugins(ctx context.Context, stuck []string) error {
	list, _ := n.configs.current() // nil without a network: that it is missing is for Ready to tell
	if list == nil || list == n.configs.fallback || !supportsGC(list) {
		return nil
	}
	return n.turns.collect(ctx, func(ctx context.Context) error {
		ids, err := n.records.ids()
		if err != nil {
			return err
		}
		var attached []string
		for _, id := range ids {
			a, err := n.records.read(id)
			switch {
			case err != nil: // a damaged record is of a pod that may be there
			case a.Network != list.Name, slices.Contains(stuck, id):
				continue
			}
			attached = append(attached, id)
		}
		return n.chains.gc(ctx, list, attached)
	})
}

func (n *Network) protect(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.recent[id] = time.Now()
}

func (n *Network) unprotect(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.recent, id)
}

func (n *Network) protected(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other, at := range n.recent {
		if time.Since(at) > n.config.GCGrace {
			delete(n.recent, other)
		}
	}
	_, ok := n.recent[id]
	return ok
}
