package ledger

import (
	"net/netip"
	"time"

	"criserver/pkg/sandbox/cgroup/limit"
	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

// PodPhase is where a pod is in its life.
type PodPhase string

// The phases of a pod: creating → ready → stopping → stopped, each → removing.
const (
	PodCreating PodPhase = "creating"
	PodReady    PodPhase = "ready"
	PodStopping PodPhase = "stopping"
	PodStopped  PodPhase = "stopped"
	PodRemoving PodPhase = "removing"
)

// PodStatus is a pod as it is.
type PodStatus struct {
	ID        string
	Config    want.Pod
	Phase     PodPhase
	CreatedAt time.Time
	// IPs are the pod's addresses, the primary one first; none for host network.
	IPs []netip.Addr `json:",omitempty"`
	// CgroupPath is the pod's cgroup. CgroupMade tells that it is the caller's but was not there before.
	CgroupPath string
	CgroupMade bool `json:",omitempty"`
	// Labels are the SELinux labels of its containers that have none of their own.
	Labels confine.Labels `json:",omitzero"`
	// Handler is the name of the runtime handler of its containers, whatever the default becomes later.
	Handler string `json:",omitempty"`
}

// Ready tells that containers can be created in the pod.
func (p PodStatus) Ready() bool { return p.Phase == PodReady }

// ContainerPhase is where a container is in its life.
type ContainerPhase string

// The phases of a container: creating → created → running → exited, each → removing.
const (
	ContainerCreating ContainerPhase = "creating"
	ContainerCreated  ContainerPhase = "created"
	ContainerRunning  ContainerPhase = "running"
	ContainerExited   ContainerPhase = "exited"
	ContainerRemoving ContainerPhase = "removing"
)

// ContainerStatus is a container as it is.
type ContainerStatus struct {
	ID, PodID string
	Config    want.Container
	// ImageID and ImageRef are the image's ID and Ref.
	ImageID, ImageRef string
	Phase             ContainerPhase
	CreatedAt         time.Time
	StartedAt         time.Time `json:",omitzero"`
	// FinishedAt, ExitCode, Reason and Message are set when the container has exited.
	FinishedAt time.Time `json:",omitzero"`
	ExitCode   int       `json:",omitempty"`
	Reason     string    `json:",omitempty"`
	Message    string    `json:",omitempty"`
	// PID of the init process on the host while Phase is created or running.
	PID int `json:",omitempty"`
	// LogPath is absolute; "" for none.
	LogPath string `json:",omitempty"`
	// LogBytesLost is how much output could not be written to the log, LogBytesDropped how much was above the limit. They
	// are about a second old.
	LogBytesLost    int64 `json:",omitempty"`
	LogBytesDropped int64 `json:",omitempty"`
	// StopSignal is the effective one, such as "SIGTERM".
	StopSignal string
	// User is who the workload runs as.
	User spec.User
	// CgroupPath is the container's cgroup.
	CgroupPath string
	// Frozen tells that its processes are stopped, see Service.Freeze.
	Frozen bool `json:",omitempty"`
	// Updating is the change of limits that is under way.
	Updating limit.Plan `json:",omitempty"`
}

// Terminal tells that the container's process is no more.
func (p ContainerPhase) Terminal() bool { return p == ContainerExited || p == ContainerRemoving }

// JournalFields tell in systemd's journal which container a line is of.
func JournalFields(c ContainerStatus, pod PodStatus) map[string]string {
	return map[string]string{
		"SYSLOG_IDENTIFIER": c.Config.Name, "CONTAINER_NAME": c.Config.Name, "CONTAINER_ID": c.ID,
		"POD_NAME": pod.Config.Name, "POD_NAMESPACE": pod.Config.Namespace, "POD_UID": pod.Config.UID,
	}
}
