// Package want holds what a caller wants of pods and containers, in terms of the CRI but not of its protobuf. What is, as
// opposed to what is wanted, is in package sandbox.
package want

import (
	"cmp"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/cni"
	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/device"
	"criserver/pkg/sandbox/idmap"
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
	// Users makes a user namespace of the pod's own; nil is the node's. A container is always in its pod's.
	Users *idmap.Mappings `json:",omitempty"`
}

// Pod is what is wanted of a pod. After RunPod only Resources and Overhead are changed, and Unfinished by FinishPod.
type Pod struct {
	Name, Namespace, UID string
	Attempt              uint32
	// Hostname is the host name in a network of the pod's own; "" makes one of Name, see HostName.
	Hostname string
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
	SELinux    confine.SELinux `json:",omitzero"`
	// Handler is the runtime handler; "" is the default.
	Handler string
	// RestoredFrom is the checkpoint that the pod is made of, with its containers; "" for none.
	RestoredFrom string `json:",omitempty"`
	// Unfinished is a pod whose containers are not all made: a daemon that starts removes it, unless somebody has stopped it.
	Unfinished bool `json:",omitempty"`
	// Resources are what the containers may take in all, Overhead what the pod takes beside them. Both are for information:
	// who owns the pod's cgroup limits it.
	Resources, Overhead spec.Resources
}

// HostName is the host name of a pod with a network of its own. The kubelet always sends one (api.proto, PodSandboxConfig.hostname); who
// sends none, such as crictl and critest, gets the pod's name as a label of the DNS (RFC 1123), and never the node's name.
func (c Pod) HostName() string {
	if c.Hostname != "" {
		return c.Hostname
	}
	label := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(c.Name))
	const longest = 63
	return cmp.Or(strings.Trim(label[:min(len(label), longest)], "-"), "pod")
}

// Container is what is wanted of a container. After CreateContainer only Resources are changed.
type Container struct {
	Name    string
	Attempt uint32
	// ImageName is the image as the user wrote it.
	ImageName     string
	Command, Args []string
	WorkingDir    string
	Env           []string // KEY=value
	Mounts        []spec.Mount
	Volumes       []ImageVolume `json:",omitempty"`
	Labels        map[string]string
	Annotations   map[string]string
	// LogPath is relative to the pod's LogDirectory; "" discards the output.
	LogPath string
	// TTY gives the workload a terminal. Stdin keeps its stdin open for those who attach, with StdinOnce until the first has
	// come and gone.
	TTY, Stdin, StdinOnce      bool
	Resources                  spec.Resources
	Namespaces                 Namespaces
	Privileged                 bool
	ReadOnlyRootFS             bool
	NoNewPrivs                 bool
	Capabilities               spec.Capabilities
	MaskedPaths, ReadonlyPaths []string
	Seccomp                    spec.SeccompKind
	// SeccompProfile is the file on the host that is used with spec.SeccompLocalhost.
	SeccompProfile string `json:",omitempty"`
	AppArmor       confine.AppArmor
	SELinux        confine.SELinux `json:",omitzero"`
	Devices        []device.Want   `json:",omitempty"`
	// CDIDevices are names of CDI devices, such as "vendor.com/gpu=0".
	CDIDevices []string `json:",omitempty"`
	User       user.Want
	// Checkpoint is the directory of a checkpoint that the container is restored from, which becomes the service's; "" for none.
	Checkpoint string `json:",omitempty"`
	// MustMatch refuses a checkpoint of a container that was another in what a restore cannot change.
	MustMatch bool `json:",omitempty"`
	// StopSignal is a name such as "SIGQUIT"; "" takes the image's, or else SIGTERM.
	StopSignal string
}

// ImageVolume is an image that is mounted into a container, read-only, as the caller has resolved it.
type ImageVolume struct {
	// ImageName is the image as it was asked for, ImageID what it was then.
	ImageName, ImageID string
	// Layers are as in Image.
	Layers      []digest.Digest
	Destination string
	// SubPath is the directory or file of the image that is mounted; "" is its root.
	SubPath string
	// Options are as those of spec.Mount.
	Options []string `json:",omitempty"`
	// Users, if not nil, are those of the pod's user namespace, to whom the files of a volume are always mapped.
	Users *idmap.Mappings `json:",omitempty"`
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
