// Package plugin is the contract between pods and containers and the plugins that have a say in them; package nri has the plugins.
package plugin

import (
	"context"
	"errors"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/spec"
)

// ErrRefused says that a plugin refuses, or wants what is not possible.
var ErrRefused = errors.New("refused by plugins")

// Event is something in the life of a pod or container.
type Event int

// The events. An error of RunPod or StartContainer fails the operation; of the others errors are the implementation's to log, and
// it returns none.
const (
	RunPod           Event = iota // all of the pod is there, it is not ready yet
	PodUpdated                    // after Plugins.UpdatePod
	StopPod                       // its containers have ended, its network is still there
	RemovePod                     // only its record is left
	ContainerCreated              // after Plugins.CreateContainer
	StartContainer                // its workload is about to be executed
	ContainerStarted              // its workload runs
	ContainerUpdated              // after Plugins.UpdateContainer
	StopContainer                 // it has exited, or will never run
	RemoveContainer               // its files go next
)

// Plugins are told of the life of pods and containers, and have a say in it. They are called by the operation that the event is
// of, with its context, and while no mutex is held, but mostly while it holds the slot of the pod or container: so an update of
// another one must not be waited for. What they do has a deadline of its own. An event may be told again: after a failed
// attempt, or after a restart.
type Plugins interface {
	PodEvent(ctx context.Context, e Event, p ledger.PodStatus) error
	ContainerEvent(ctx context.Context, e Event, c ledger.ContainerStatus) error
	// UpdatePod asks whether a pod's resources may change, before they do; nil stays as it is.
	UpdatePod(ctx context.Context, p ledger.PodStatus, overhead, resources *spec.Resources) error
	// CreateContainer adjusts the specification of a container that is being made, and returns its limits as they are then.
	CreateContainer(ctx context.Context, c ledger.ContainerStatus, s *specs.Spec) (spec.Resources, error)
	// UpdateContainer returns the change of limits that is to be made instead of the one that is asked for. The caller does not
	// hold the container's slot: what plugins want of others takes theirs.
	UpdateContainer(ctx context.Context, c ledger.ContainerStatus, change spec.Resources) (spec.Resources, error)
}

// None are no plugins.
type None struct{}

// PodEvent implements Plugins.
func (None) PodEvent(context.Context, Event, ledger.PodStatus) error { return nil }

// ContainerEvent implements Plugins.
func (None) ContainerEvent(context.Context, Event, ledger.ContainerStatus) error { return nil }

// UpdatePod implements Plugins.
func (None) UpdatePod(context.Context, ledger.PodStatus, *spec.Resources, *spec.Resources) error {
	return nil
}

// CreateContainer implements Plugins.
func (None) CreateContainer(_ context.Context, c ledger.ContainerStatus, _ *specs.Spec) (spec.Resources, error) {
	return c.Config.Resources, nil
}

// UpdateContainer implements Plugins.
func (None) UpdateContainer(_ context.Context, _ ledger.ContainerStatus, change spec.Resources) (spec.Resources, error) {
	return change, nil
}
