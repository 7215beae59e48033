package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pod is what a container's specification needs to know of its pod. All paths are on the host.
type Pod struct {
	ID, Name, Namespace, UID string
	// Hostname is the pod's host name; it is set in the pod's UTS namespace, not by the container.
	Hostname string
	// NetNS, IPCNS and UTSNS are the pinned namespaces to join; "" joins the host's.
	NetNS, IPCNS, UTSNS string
	// ShmPath is the pod's /dev/shm (the host's for host IPC); ResolvConf, HostnameFile: "" when the
	// container is to see its image's own.
	ShmPath, ResolvConf, HostnameFile string
	// CgroupPath is the absolute cgroupfs path of the pod's cgroup, such as "/kubepods/burstable/pod1234".
	CgroupPath string
	// Privileged tells that the pod may hold privileged containers.
	Privileged bool
}

// PIDMode says which PID namespace a container gets.
type PIDMode int

// The PID namespace modes of the CRI (NamespaceMode in api.proto).
const (
	PIDContainer PIDMode = iota // a namespace of its own
	PIDPath                     // the one at Container.PIDNS (the pod's, or a target container's)
	PIDHost                     // the node's
)

// Propagation of a bind mount (MountPropagation in api.proto).
type Propagation int

// The propagation modes; see mount_namespaces(7): private, slave ("HostToContainer"), shared ("Bidirectional").
const (
	PropagationPrivate Propagation = iota
	PropagationHostToContainer
	PropagationBidirectional
)

// Mount is a bind mount of a host path.
type Mount struct {
	Source      string // on the host, symlinks resolved, exists
	Destination string // in the container, absolute
	ReadOnly    bool
	Propagation Propagation
}

// Resources are cgroup limits; zero means unset (kernel default), as in LinuxContainerResources of api.proto.
type Resources struct {
	CPUPeriod   int64 // µs
	CPUQuota    int64 // µs per period; -1 is unlimited
	CPUShares   int64
	MemoryLimit int64 // bytes; -1 is unlimited
	MemorySwap  int64 // bytes, memory + swap as in the OCI spec; -1 is unlimited
	CpusetCPUs  string
	CpusetMems  string
	OOMScoreAdj int64
}

// Capabilities are added to and dropped from the default set, by name with or without "CAP_", or "ALL".
type Capabilities struct {
	Add, Drop []string
}

// User is who the process runs as, already resolved against the image's /etc/passwd and /etc/group.
type User struct {
	UID, GID       uint32
	AdditionalGIDs []uint32
	// Home is the home directory of the passwd entry; "" means "/" (used for $HOME when the image sets none).
	Home string
}

// SeccompKind selects a seccomp profile.
type SeccompKind int

// The seccomp profiles (SecurityProfile.ProfileType in api.proto).
const (
	SeccompUnconfined SeccompKind = iota // the kubelet's default when nothing is set
	SeccompRuntimeDefault
)

// Container is everything that a container's specification is made of beside its pod.
type Container struct {
	ID string
	// RootFS is the mounted root directory on the host.
	RootFS string
	// Image is the image's own configuration: entrypoint, command, environment, working directory.
	Image ocispec.ImageConfig
	// Command and Args override Entrypoint and Cmd as a Kubernetes pod's command and args do.
	Command, Args []string
	// WorkingDir overrides the image's; "" with none in the image is "/".
	WorkingDir string
	// Env entries are "KEY=value", later ones win, all of them win over the image's.
	Env         []string
	Mounts      []Mount
	Annotations map[string]string
	TTY         bool
	User        User
	PID         PIDMode
	PIDNS       string // with PIDPath
	Privileged  bool
	NoNewPrivs  bool
	// ReadOnlyRootFS makes / read-only.
	ReadOnlyRootFS bool
	Capabilities   Capabilities
	// MaskedPaths and ReadonlyPaths: nil means the defaults, empty means none. Privileged has none.
	MaskedPaths, ReadonlyPaths []string
	Seccomp                    SeccompKind
	Resources                  Resources
	// UnifiedCgroup tells that the host runs pure cgroup v2 (then the container gets a cgroup namespace).
	UnifiedCgroup bool
	// MinOOMScoreAdj is the lowest oom_score_adj that this runtime may set (its own, without
	// CAP_SYS_RESOURCE); the specification's value is clamped to it. MayLowerOOMScore: no clamp.
	MinOOMScoreAdj   int
	MayLowerOOMScore bool
}
