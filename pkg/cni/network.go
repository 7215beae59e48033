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
	"criserver/pkg/cni/turns"
)

const (
	undoLimit   = time.Minute
	statusLimit = 5 * time.Second
)

// Network attaches pods. Its methods may be called at the same time; those for one pod queue.
type Network struct {
	config Config
	// places are the node's, under "", and those of runtime handlers.
	places  map[string]*place
	chains  *chains
	records records
	builtin *builtin
	pods    turns.Slots
	// turns keep the plugins' GC, which would take the addresses of pods that come up meanwhile for garbage, apart.
	turns turns.Turns
	cidrs turns.Slots // for SetPodCIDRs

	stop   context.CancelFunc
	worker sync.WaitGroup

	mu     sync.Mutex
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
	known := readCIDRs(c.DataDir)
	if len(known) > 0 && !c.Builtin.Fixed {
		c.Builtin.Subnets = known
	}
	b, err := newBuiltin(c.Builtin, filepath.Join(c.DataDir, "builtin"))
	if err != nil {
		return nil, err
	}
	places, err := newPlaces(c)
	if err != nil {
		return nil, err
	}
	n := &Network{
		config:  c,
		places:  places,
		chains:  newChains(c.BinDirs, c.CacheDir, &runner{builtin: b}),
		records: rec,
		builtin: b,
		recent:  map[string]time.Time{},
	}
	if len(known) > 0 && c.Template != "" { // which may be new, or what was made of it gone
		if err := n.usePodCIDRs(ctx, known); err != nil {
			logrus.WithError(err).Error("the CNI configuration cannot be made of the template")
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

// Ready returns nil if pods of Config.DefaultHandler can be set up, or why not: an error that is ErrNotReady and names the
// networks that are not ready. The answer is at most Config.StatusInterval old.
func (n *Network) Ready() error { return n.of(n.config.DefaultHandler).state() }

// Setup switches on the pod's loopback interface and attaches the pod to the networks of its handler. A pod that is
// attached already, by a Setup that was cut off, is taken down first. After an error nothing of the attachment is left, or,
// if the error says so, what is left is removed by Teardown or GC. Errors may be ErrInvalid, ErrNotReady, ErrPortTaken,
// ErrExhausted or ErrUnlimitable.
func (n *Network) Setup(ctx context.Context, p Pod) (Result, error) {
	if err := p.validate(); err != nil {
		return Result{}, err
	}
	if !netns.Exists(p.NetNS) {
		return Result{}, fmt.Errorf("pod %s: no network namespace at %q", p.ID, p.NetNS)
	}
	release, err := n.pods.Acquire(ctx, p.ID)
	if err != nil {
		return Result{}, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer release()
	leave, err := n.turns.Enter(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer leave()
	n.protect(p.ID)
	defer n.protect(p.ID)

	lists, err := n.of(p.Handler).usable()
	if err != nil {
		return Result{}, err
	}
	if err := n.detach(ctx, p); err != nil {
		return Result{}, fmt.Errorf("take down earlier network of pod %s: %w", p.ID, err)
	}
	return n.attach(ctx, lists, p)
}

func (n *Network) attach(ctx context.Context, lists []*libcni.NetworkConfigList, p Pod) (Result, error) {
	all, err := newAttachments(lists, p)
	if err != nil {
		return Result{}, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	warnUnlimited(all, p)
	warnUnmapped(all, p)
	if err := netns.LoopbackUp(p.NetNS); err != nil {
		return Result{}, err
	}
	var first Result
	for i, a := range all {
		// What is about to begin is on record first, and what is not, no plugin has to take back.
		err := n.records.write(p.ID, all[:i+1])
		var result Result
		if err == nil {
			result, err = n.chains.add(ctx, a)
		}
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
			defer cancel()
			if undo := n.detach(ctx, p); undo != nil {
				err = errors.Join(err, fmt.Errorf("undo: %w", undo))
			}
			return Result{}, err
		}
		if i == 0 {
			first = result
			continue
		}
		logrus.WithFields(logrus.Fields{"pod": p.ID, "network": a.Network, "interface": a.IfName, "ips": result.IPs}).Info(
			"pod is attached to a further network")
	}
	return first, nil
}

// warnUnlimited tells of a pod with a limit that a network does not know of.
func warnUnlimited(all []attachment, p Pod) {
	if b, _ := bandwidthOf(p.Annotations); b == (bandwidth{}) {
		return
	}
	for _, a := range all {
		if a.Capabilities[bandwidthCapability] == nil {
			logrus.WithFields(logrus.Fields{"pod": p.ID, "name": p.Namespace + "/" + p.Name, "network": a.Network}).Warn(
				"the pod's bandwidth is not limited: no plugin of the network declares the capability bandwidth")
		}
	}
}

// warnUnmapped tells of a pod with host ports that no network maps.
func warnUnmapped(all []attachment, p Pod) {
	mapped := slices.ContainsFunc(all, func(a attachment) bool { return a.Capabilities[portMappingsCapability] != nil })
	if mapped || len(portMappings(p.Ports)) == 0 {
		return
	}
	for _, a := range all {
		logrus.WithFields(logrus.Fields{"pod": p.ID, "name": p.Namespace + "/" + p.Name, "network": a.Network}).Warn(
			"the pod's host ports do not lead to it: no plugin of the network declares the capability portMappings")
	}
}

// Teardown detaches the pod from the networks it was attached to, with the configuration of then, in reverse order. Only
// p.ID is needed, and p.NetNS unless it is gone. It is no error if the pod is not attached. A plugin that fails or hangs
// keeps no other one from its DEL; the errors are joined, and the pod stays attached for another Teardown, or GC. A plugin
// that is not installed any more is passed over with a warning in the log.
func (n *Network) Teardown(ctx context.Context, p Pod) error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("%w: pod id %q: %w", ErrInvalid, p.ID, err)
	}
	release, err := n.pods.Acquire(ctx, p.ID)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer release()
	leave, err := n.turns.Enter(ctx)
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
	all, err := n.records.read(p.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the record is written before anything is done
	}
	if err != nil {
		logrus.WithError(err).WithField("pod", p.ID).Warn("the record of the pod's network is damaged")
		if all, err = n.reconstruct(p); err != nil {
			return fmt.Errorf("pod %s: %w", p.ID, err)
		}
	}
	for i := range all {
		if p.NetNS != "" {
			all[i].NetNS = p.NetNS
		}
	}
	left, err := n.chains.del(ctx, all)
	if err != nil && len(left) < len(all) { // those that are done with are not to be asked again
		err = errors.Join(err, n.records.write(p.ID, left))
	}
	if err != nil {
		return err
	}
	return n.records.remove(p.ID)
}

// reconstruct makes the attachments of a pod whose record a power cut damaged: from libcni's cache, or, if that is lost
// too, as if the pod were set up now.
func (n *Network) reconstruct(p Pod) ([]attachment, error) {
	all, err := n.chains.cachedAttachments(p.ID)
	if err != nil || len(all) > 0 {
		return all, err
	}
	lists, err := n.of(p.Handler).networks()
	if err != nil {
		return nil, err
	}
	return newAttachments(lists, p)
}

// Check asks the plugins whether the pod is connected as they left it, with the configuration of then; only p.ID is needed. A pod that
// comes or goes waits for that. It returns nil for a network whose version has no CHECK or that disables it.
func (n *Network) Check(ctx context.Context, p Pod) error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("pod id %q: %w", p.ID, err)
	}
	release, err := n.pods.Acquire(ctx, p.ID)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer release()
	leave, err := n.turns.Enter(ctx)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.ID, err)
	}
	defer leave()
	all, err := n.records.read(p.ID)
	if err != nil {
		return fmt.Errorf("pod %s is not attached: %w", p.ID, err)
	}
	var errs []error
	for _, a := range all {
		list, err := a.list()
		if err != nil {
			return err
		}
		err = n.chains.CheckNetworkList(ctx, list, a.runtimeConf())
		if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
			errs = append(errs, fmt.Errorf("check pod %s on network %s: %w", p.ID, a.Network, err))
		}
	}
	return errors.Join(errs...)
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
	release, err := n.pods.Acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	leave, err := n.turns.Enter(ctx)
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
	cached, err := n.chains.cachedAttachments(id)
	if err != nil {
		return err
	}
	if _, err := n.chains.del(ctx, cached); err != nil {
		return err
	}
	return n.builtin.bridge.Del(ctx, id)
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
