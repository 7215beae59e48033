package sandbox

import (
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/cni"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/user"
)

// NamespaceMode says whose namespace is used, as NamespaceMode in api.proto.
type NamespaceMode int

// The namespace modes. Only a PID namespace can be NamespaceContainer or NamespaceTarget.
const (
	NamespacePod NamespaceMode = iota
	NamespaceContainer
	NamespaceNode
	NamespaceTarget
)

// Namespaces are the modes of a pod or container.
type Namespaces struct {
	Network, IPC, PID NamespaceMode
	// TargetID is the container whose PID namespace is joined in mode NamespaceTarget.
	TargetID string
}

// PodConfig is what is wanted of a pod. It is not changed after RunPod.
type PodConfig struct {
	Name, Namespace, UID string
	Attempt              uint32
	Hostname             string
	// LogDirectory is the host directory that holds the containers' logs; "" for none.
	LogDirectory string
	// DNS makes the pod's resolv.conf; nil copies the host's.
	DNS         *cni.DNS
	Ports       []cni.PortMapping
	Labels      map[string]string
	Annotations map[string]string
	// CgroupParent is the absolute cgroupfs path of the pod's cgroup, which the caller owns; "" has one made.
	CgroupParent string
	Sysctls      map[string]string
	Namespaces   Namespaces
	// Privileged allows privileged containers.
	Privileged bool
	// Handler is the runtime handler; "" is the default.
	Handler string
}

// ContainerConfig is what is wanted of a container. It is not changed after CreateContainer.
type ContainerConfig struct {
	Name    string
	Attempt uint32
	// ImageName is the image as the user wrote it.
	ImageName     string
	Command, Args []string
	WorkingDir    string
	Env           []string // KEY=value
	Mounts        []spec.Mount
	Labels        map[string]string
	Annotations   map[string]string
	// LogPath is relative to the pod's LogDirectory; "" discards the output.
	LogPath                    string
	Resources                  spec.Resources
	Namespaces                 Namespaces
	Privileged                 bool
	ReadOnlyRootFS             bool
	NoNewPrivs                 bool
	Capabilities               spec.Capabilities
	MaskedPaths, ReadonlyPaths []string
	Seccomp                    spec.SeccompKind
	User                       user.Want
	// StopSignal is a name such as "SIGQUIT"; "" takes the image's, or else SIGTERM.
	StopSignal string
}

// Image is the image of a container, resolved by the caller.
type Image struct {
	// ID is the digest of the image's configuration. Ref is what names it for people, such as
	// "docker.io/library/nginx@sha256:…".
	ID, Ref string
	// Layers are the diffIDs, lowest first.
	Layers []digest.Digest
	Config ocispec.ImageConfig
}

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
	Config    PodConfig
	Phase     PodPhase
	CreatedAt time.Time
	// IPs are the pod's addresses, the primary one first; none for host network.
	IPs []netip.Addr `json:",omitempty"`
	// CgroupPath is the pod's cgroup. CgroupMade tells that it is the caller's but was not there before.
	CgroupPath string
	CgroupMade bool `json:",omitempty"`
}

// ready tells that containers can be created in the pod.
func (p PodStatus) ready() bool { return p.Phase == PodReady }

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

// ContainerStatus is a container as it is.
type ContainerStatus struct {
	ID, PodID string
	Config    ContainerConfig
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
	// StopSignal is the effective one, such as "SIGTERM".
	StopSignal string
	// User is who the workload runs as.
	User spec.User
	// CgroupPath is the container's cgroup.
	CgroupPath string
}

// terminal tells that the container's process is no more.
func (p ContainerPhase) terminal() bool { return p == ContainerExited || p == ContainerRemoving }
