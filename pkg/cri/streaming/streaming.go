// Package streaming gives people terminals and ports in containers: the endpoints of exec, attach and port-forward, which the
// kubelet and crictl connect to by a URL that the daemon has told them.
//
// # Processes
//
// A session outlives the daemon: its bytes pass through a process of its own, which the daemon starts, detached, when the
// first URL is asked for, and which ends when it has had nothing to do for a while. The Client is the daemon's side. It
// resolves what is asked for to an Operation, which says all that is needed, and gets a URL for it over a Unix socket for
// root only. The Server is that process. It talks to crimonitor, which passes the descriptors of processes and
// containers on and is not in the way of bytes either.
//
//	kubelet ─gRPC─► criserver ─Operation─► criserver stream-server ─► crimonitor: descriptors
//	   └────────────────────────SPDY, WebSocket──┘    ▲ bytes ▼
//	                                              process, container, network namespace
//
// A server of another version or with other settings is told to drain: it keeps its sessions, and takes no new ones.
package streaming

import (
	"errors"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

var (
	// ErrUnavailable says that the stream server cannot be started or does not answer.
	ErrUnavailable = errors.New("streaming is not available")
	// ErrBusy says that too many URLs have been given out that nobody has used yet.
	ErrBusy = errors.New("too many streaming requests are in flight")
)

// Settings are all that a server needs to know. They are its command line, and have no secrets.
type Settings struct {
	// Control is the Unix socket for the daemon, Monitor that of crimonitor.
	Control, Monitor string
	// Address is the IP address or name that clients connect to, Port the TCP port; 0 is any that is free.
	Address string
	Port    int
	TLS     TLS
	// Idle ends a session in which nothing happens, Creation one whose client does not open its streams.
	Idle, Creation time.Duration
	// Grace is what a process has between the SIGHUP that tells it that its client has gone and its death. A negative one
	// leaves it alone.
	Grace time.Duration
	// Linger is how long the server stays without anything to do.
	Linger time.Duration
	// Version of the program.
	Version string
}

// TLS is how the server proves who it is, and whom it lets in. The zero value is plain HTTP.
type TLS struct {
	// Certificate and Key are PEM files. With Generate there are none: the server makes a certificate of its own.
	Certificate, Key string
	Generate         bool
	// ClientCA is a PEM file; with it, clients must have a certificate by one of its authorities.
	ClientCA string
	// MinVersion is "1.2" or "1.3", Ciphers the names of cipher suites for 1.2; empty is the library's choice.
	MinVersion string
	Ciphers    []string
}

// Operation is what a URL is for. Exactly one of the three is set.
type Operation struct {
	Exec        *Exec        `json:"exec,omitempty"`
	Attach      *Attach      `json:"attach,omitempty"`
	PortForward *PortForward `json:"port_forward,omitempty"`
}

// Streams are those that the client will open.
type Streams struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
	TTY    bool `json:"tty,omitempty"`
}

// Exec runs a process in a container.
type Exec struct {
	Container string         `json:"container"`
	Process   *specs.Process `json:"process"`
	Streams
}

// Attach connects to a container's own streams.
type Attach struct {
	Container string `json:"container"`
	Streams
}

// PortForward connects to ports of a pod.
type PortForward struct {
	Pod string `json:"pod"`
	// NetNS is the path of its network namespace, "" the host's.
	NetNS string  `json:"netns,omitempty"`
	Ports []int32 `json:"ports,omitempty"`
}
