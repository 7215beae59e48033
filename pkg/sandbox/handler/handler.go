// Package handler knows the runtime handlers of a node: the ways to run containers that pods choose from by their RuntimeClass.
//
// One whose program or snapshotter does not work makes the pods that want it fail, and not the node: it is asked again each time, so that a
// program that was repaired needs no restart.
package handler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/runtime"
)

// Builtin is the name of the handler that is always there.
const Builtin = "builtin"

var (
	// ErrUnknown: no handler of that name is configured.
	ErrUnknown = errors.New("unknown runtime handler")
	// ErrUnusable: the handler's program, or its snapshotter, does not work.
	ErrUnusable = errors.New("unusable runtime handler")
)

// Handler is one way to run containers.
type Handler struct {
	Name string
	// Command is the OCI runtime; nil is the one that is built into crimonitor.
	Command *runtime.Command
	// PodAnnotations are patterns, as of path.Match, of the names of a pod's annotations that its containers' specifications get. What
	// they fit is passed on from containers, too, if it is an order to the runtime; what else containers have is in any case.
	PodAnnotations []string
	// Annotations are in the specification of each container that has none of that name.
	Annotations map[string]string
	// Snapshotter is the driver of the root file systems; "" is that of the node.
	Snapshotter string
	Defaults
}

// Usable is a handler that has been asked.
type Usable struct {
	Handler
	// SpecVersion is the newest version of the OCI runtime specification that it knows.
	SpecVersion string
	Features    Features
	// Orders are the annotations that it calls potentially unsafe in a specification; one that ends with a dot is a prefix.
	Orders []string
	// LeastMemory is a limit below which it starts no container, in bytes.
	LeastMemory int64
}

// Features are what a handler can do beyond what each one can.
type Features struct {
	RecursiveReadOnlyMounts, UserNamespaces bool
	// Checkpoints: it makes and restores them, where criu is.
	Checkpoints bool
	// UsersOnHostNetwork: pods with user namespaces can be on the host's network.
	UsersOnHostNetwork bool
}

// CheckUsers tells why a pod, on the host's network or not, cannot have a user namespace.
func (u Usable) CheckUsers(hostNetwork bool) error {
	switch {
	case !u.Features.UserNamespaces:
		return fmt.Errorf("runtime handler %q has no user namespaces on this node (its log says why at the start)", u.Name)
	case hostNetwork && !u.Features.UsersOnHostNetwork:
		return fmt.Errorf("runtime handler %q has no user namespaces on this node's network (its log says why at the start)", u.Name)
	}
	return nil
}

// CheckProcesses tells why the containers of a pod cannot share their processes, with each other or with the node.
func (u Usable) CheckProcesses(shared bool) error {
	if shared && u.Command != nil && u.Command.Sandbox {
		return fmt.Errorf("runtime handler %q gives each container a kernel of its own: it shares its processes with no other one, which "+
			"is the mode CONTAINER", u.Name)
	}
	return nil
}

// Set holds the handlers of a node.
type Set struct {
	standard string
	handlers map[string]Handler
	node     Features
	storage  Storage

	mu     sync.Mutex
	states map[string]state
	// askedAgain is when the default handler was, by Ready.
	askedAgain time.Time
}

// state is what was found out about a handler last.
type state struct {
	usable Usable
	err    error // why it is not usable
}

// Storage tells why root file systems cannot be made by a snapshotter, "" being that of the node; nil if they can.
type Storage func(ctx context.Context, snapshotter string) error

// New makes a set of the handlers and the built-in one, which need not be among them. standard is the name of the one for pods
// that choose none. node is what the node allows to any of them.
func New(standard string, node Features, storage Storage, handlers []Handler) (*Set, error) {
	s := &Set{node: node, storage: storage, standard: cmp.Or(standard, Builtin), handlers: map[string]Handler{Builtin: {Name: Builtin}}, states: map[string]state{}}
	for _, h := range handlers {
		h.Ulimits = PossibleUlimits(h.Name, h.Ulimits)
		s.handlers[h.Name] = h
	}
	if _, ok := s.handlers[s.standard]; !ok {
		return nil, fmt.Errorf("default: %w", s.unknown(s.standard))
	}
	return s, nil
}

func (s *Set) unknown(name string) error {
	return fmt.Errorf("%w %q: there are %s", ErrUnknown, name, strings.Join(slices.Sorted(maps.Keys(s.handlers)), ", "))
}

// Probe asks all handlers, at the same time, and logs what is wrong.
func (s *Set) Probe(ctx context.Context) {
	var wg sync.WaitGroup
	for _, h := range s.handlers {
		wg.Go(func() {
			st := s.probe(ctx, h)
			log := logrus.WithFields(logrus.Fields{"handler": h.Name, "default": h.Name == s.standard})
			if st.err != nil {
				log.WithError(st.err).Error("a runtime handler cannot be used; pods that want it fail until it can")
				return
			}
			log.WithFields(logrus.Fields{"spec": st.usable.SpecVersion, "features": st.usable.Features}).Info("runtime handler")
		})
	}
	wg.Wait()
}

func (s *Set) probe(ctx context.Context, h Handler) state {
	st := state{usable: Usable{Handler: h, SpecVersion: builtinSpec, Features: builtinFeatures, LeastMemory: leastMemory[Builtin]}}
	if h.Command != nil {
		st.usable, st.err = ask(ctx, *h.Command)
		h.Command = st.usable.Command
		st.usable.Handler = h
	}
	if st.err == nil {
		st.err = s.storage(ctx, h.Snapshotter)
	}
	st.usable.Features.RecursiveReadOnlyMounts = st.usable.Features.RecursiveReadOnlyMounts && s.node.RecursiveReadOnlyMounts
	st.usable.Features.UserNamespaces = st.usable.Features.UserNamespaces && s.node.UserNamespaces
	// The host's /sys is shown read-only as far down as it goes.
	st.usable.Features.UsersOnHostNetwork = st.usable.Features.UserNamespaces && st.usable.Features.RecursiveReadOnlyMounts && s.node.UsersOnHostNetwork
	if st.err != nil {
		st.err = fmt.Errorf("%w %q: %w", ErrUnusable, h.Name, st.err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states[h.Name] = st
	return st
}

// Find returns the handler of that name, "" being the default one. ErrUnknown. ErrUnusable.
func (s *Set) Find(ctx context.Context, name string) (Usable, error) {
	name = cmp.Or(name, s.standard)
	h, ok := s.handlers[name]
	if !ok {
		return Usable{}, s.unknown(name)
	}
	s.mu.Lock()
	st, asked := s.states[name]
	s.mu.Unlock()
	if !asked || st.err != nil {
		st = s.probe(ctx, h)
		return st.usable, st.err
	}
	// A program stays what it is; a thin pool may be full by now, or gone.
	if err := s.storage(ctx, h.Snapshotter); err != nil {
		return st.usable, fmt.Errorf("%w %q: %w", ErrUnusable, name, err)
	}
	return st.usable, nil
}

// Check refuses the name of a handler that is not configured: ErrUnknown. "" is the default one.
func (s *Set) Check(name string) error {
	if _, ok := s.handlers[cmp.Or(name, s.standard)]; !ok {
		return s.unknown(name)
	}
	return nil
}

// List returns the handlers that were found usable, by name, and the default one, whose name is "" here, first.
func (s *Set) List() []Usable {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Usable
	for _, name := range slices.Sorted(maps.Keys(s.states)) {
		if st := s.states[name]; st.err == nil {
			out = append(out, st.usable)
		}
	}
	if st, ok := s.states[s.standard]; ok && st.err == nil {
		standard := st.usable
		standard.Name = ""
		out = slices.Insert(out, 0, standard)
	}
	return out
}

// askAgain is how long the answer of a default handler that cannot be used is kept: who waits for it to be ready asks for no pods.
const askAgain = 5 * time.Second

// Ready tells why the default handler cannot be used, as was found out last; nil if it can. One that cannot is asked again in the
// background.
func (s *Set) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.states[s.standard].err
	if err != nil && time.Since(s.askedAgain) > askAgain {
		s.askedAgain = time.Now()
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 3*askLimit)
			defer cancel()
			s.probe(ctx, s.handlers[s.standard])
		}()
	}
	return err
}
