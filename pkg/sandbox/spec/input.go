package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/idmap"
)

// Pod is what a container's specification needs to know of its pod. All paths are on the host.
type Pod struct {
	ID, Name, Namespace, UID string
	// Hostname is the pod's host name; it is set in the pod's UTS namespace, not by the container.
	Hostname string
	// NetNS, IPCNS and UTSNS are the pinned namespaces to join; "" joins the host's.
	NetNS, IPCNS, UTSNS string
	// UserNS is the pinned user namespace, which the others belong to, and Users who is who in it; "" and nil are the host's.
	UserNS string
	Users  *idmap.Mappings
	// ShmPath is the pod's /dev/shm (the host's for host IPC); ResolvConf, HostnameFile and HostsFile: "" when
	// the container is to see its image's own.
	ShmPath, ResolvConf, HostnameFile, HostsFile string
	// CgroupPath is the absolute cgroupfs path of the pod's cgroup, such as "/kubepods/burstable/pod1234"; if it ends in ".slice"
	// systemd makes those of its containers.
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
	// RecursiveReadOnly makes read-only what is mounted below Source too; with ReadOnly and PropagationPrivate only.
	RecursiveReadOnly bool `json:",omitempty"`
	Propagation       Propagation
	// Users are who the owners in Source are to the container, with a user namespace; nil leaves them who they are.
	Users *idmap.Mappings `json:",omitempty"`
	// Relabel gives Source and all below it the container's SELinux label.
	Relabel bool `json:",omitempty"`
	// Options are of "nodev", "noexec" and "nosuid"; as all options of mount(8), not of what is mounted below Source.
	Options []string `json:",omitempty"`
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
	// HugepageLimits are bytes by page size ("2MB"); only for sizes that the host's hugetlb controller has.
	HugepageLimits map[string]uint64 `json:",omitempty"`
	// Unified are cgroup v2 files and what to write to them, after all else; an error on cgroup v1.
	Unified map[string]string `json:",omitempty"`
}

// Device is a device node of the container, with the host's major and minor number.
type Device struct {
	specs.LinuxDevice
	// Permissions are those of the device cgroup: letters of "rwm" (read, write, mknod).
	Permissions string
}

// Capabilities are added to and dropped from the default set, by name with or without "CAP_", or "ALL". Ambient ones are
// added, and kept by processes of any user. What is dropped is in no set.
type Capabilities struct {
	Add, Drop []string
	Ambient   []string `json:",omitempty"`
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
	SeccompLocalhost // Container.SeccompProfile
)

// Container is everything that a container's specification is made of beside its pod.
type Container struct {
	ID string
	// Name and ImageName are annotations only: the container's name in the pod, and the image as the user wrote it.
	Name, ImageName string
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
	// HeldCapabilities are those that this runtime may give away: its own permitted set, as "CAP_…". A
	// container gets no others, since the kernel refuses them (EPERM), and all of them when it is privileged.
	// nil means all of capabilities(7).
	HeldCapabilities []string
	// MaskedPaths and ReadonlyPaths: nil means the defaults, empty means none. Privileged has none.
	MaskedPaths, ReadonlyPaths []string
	// HostMaskedPaths join the default masked paths: /sys/devices/system/cpu/cpu*/thermal_throttle, as far as
	// the host has them (they tell one tenant what another computes).
	HostMaskedPaths []string
	Seccomp         SeccompKind
	// SeccompProfile is with SeccompLocalhost.
	SeccompProfile *specs.LinuxSeccomp
	// AppArmorProfile is the name of one that is loaded; "" is none.
	AppArmorProfile string
	// ProcessLabel and MountLabel are SELinux labels, of the workload and of the file systems that the runtime mounts for it; "" is none.
	ProcessLabel, MountLabel string
	Devices                  []Device
	// HostDevices are all of the host's, for a privileged container.
	HostDevices []specs.LinuxDevice
	Resources   Resources
	// SwapAccounting tells that the kernel can limit swap, see LinuxResources.
	SwapAccounting bool
	// UnifiedCgroup tells that the host runs pure cgroup v2 (then the container gets a cgroup namespace).
	UnifiedCgroup bool
	// CgroupMountOptions are those of "nsdelegate" and "memory_recursiveprot" that the host's /sys/fs/cgroup is
	// mounted with. They belong to the one cgroup2 superblock: a container in the host's cgroup namespace would
	// take them from the whole host if it did not repeat them.
	CgroupMountOptions []string
	// MinOOMScoreAdj is the lowest oom_score_adj that this runtime may set (its own, without
	// CAP_SYS_RESOURCE); the specification's value is clamped to it. MayLowerOOMScore: no clamp.
	MinOOMScoreAdj   int
	MayLowerOOMScore bool
}
