package sandbox

import "criserver/pkg/sandbox/ledger"

// PodStatus and ContainerStatus are a pod and a container as they are, see package ledger.
type (
	PodStatus       = ledger.PodStatus
	ContainerStatus = ledger.ContainerStatus
	ContainerPhase  = ledger.ContainerPhase
)

// The phases of a pod.
const (
	PodCreating = ledger.PodCreating
	PodReady    = ledger.PodReady
	PodStopping = ledger.PodStopping
	PodStopped  = ledger.PodStopped
	PodRemoving = ledger.PodRemoving
)

// The phases of a container.
const (
	ContainerCreating = ledger.ContainerCreating
	ContainerCreated  = ledger.ContainerCreated
	ContainerRunning  = ledger.ContainerRunning
	ContainerExited   = ledger.ContainerExited
	ContainerRemoving = ledger.ContainerRemoving
)

// Reasons of an exit, for ContainerStatus.Reason.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	ReasonUnknown    = "Unknown"
)

// Exit codes of containers that no workload returned.
const (
	exitStartError = 128
	exitUnknown    = 255
)
