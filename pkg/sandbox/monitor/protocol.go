// Package monitor is how criserver speaks with crimonitor, the resident parent of all containers.
//
// # Protocol
//
// Each call is a connection of its own to crimonitor's Unix socket: one request frame, one response frame, end.
// A frame is a 32-bit big-endian length and that many bytes of JSON. File descriptors travel with the first
// byte of a request. Closing the connection, or its sending half, cancels the call. Two calls have more response frames than one: Watch
// sends the state of every container, then Synced, then each change as it happens, until one side closes; Attach sends
// a second one at the end of the output. Only root may connect.
package monitor

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/monitor/crilog"
	"criserver/pkg/sandbox/runtime"
)

// Protocol is the version of the protocol. It is raised when an older crimonitor, which outlives the daemon
// that started it, would misunderstand a newer daemon or the other way about.
const Protocol = 2

// MaxFrame is the largest frame in bytes that either side accepts.
const MaxFrame = 4 << 20

// Errors that calls return, wrapped with the monitor's own words; test with errors.Is.
var (
	// ErrNotFound: the monitor knows no container of that ID.
	ErrNotFound = errors.New("not found")
	// ErrExists: a container of that ID exists already.
	ErrExists = errors.New("already exists")
	// ErrNotRunning: the container's process has not been started or has ended.
	ErrNotRunning = errors.New("not running")
	// ErrBusy: the monitor will not shut down: it has containers, or a service manager ends it.
	ErrBusy = errors.New("crimonitor stays")
	// ErrProtocol: the two sides speak different versions of the protocol.
	ErrProtocol = errors.New("unknown protocol version")
	// ErrUnavailable: no monitor answers on the socket.
	ErrUnavailable = errors.New("crimonitor does not answer")
	// ErrTimeout: an executed command did not end in its time and was killed.
	ErrTimeout = errors.New("command timed out")
	// ErrLogFile: something is at a container's log path that is no file to append to.
	ErrLogFile = crilog.ErrFile
)

// Method names a call.
type Method string

// The calls.
const (
	MethodInfo     Method = "info"
	MethodCreate   Method = "create"
	MethodStart    Method = "start"
	MethodSignal   Method = "signal"
	MethodExec     Method = "exec"
	MethodAttach   Method = "attach"
	MethodReopen   Method = "reopen"
	MethodDump     Method = "dump"
	MethodRestore  Method = "restore"
	MethodDelete   Method = "delete"
	MethodWatch    Method = "watch"
	MethodShutdown Method = "shutdown"
)

// Request is the frame that a client sends.
type Request struct {
	Protocol int             `json:"protocol"`
	Method   Method          `json:"method"`
	Params   json.RawMessage `json:"params,omitempty"`
}

// Response is the frame that the monitor answers with.
type Response struct {
	// Code names one of this package's errors, "internal" any other; "" is success.
	Code    string          `json:"code,omitempty"`
	Message string          `json:"message,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
}

// Info tells who answers.
type Info struct {
	PID      int    `json:"pid"`
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
}

// CreateRequest asks for a container whose init process is set up and waits to be started.
type CreateRequest struct {
	ID string `json:"id"`
	// Bundle is the directory that holds the OCI config.json.
	Bundle string `json:"bundle"`
	// LogPath is the CRI log file, appended to; "" discards the output.
	LogPath string `json:"log_path,omitempty"`
	// LogRate and LogBurst limit what goes to the log, in bytes a second and bytes; a rate of 0 is no limit.
	LogRate  int64 `json:"log_rate,omitempty"`
	LogBurst int64 `json:"log_burst,omitempty"`
	// Journal are the fields of messages to systemd's journal, which has a copy of the log if there are any.
	Journal map[string]string `json:"journal,omitempty"`
	// Stdin keeps the container's stdin open for those who attach; otherwise it is /dev/null. StdinOnce ends it with the
	// first of them. A container with a terminal has its stdin there.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdin_once,omitempty"`
	// Runtime is the OCI runtime, which the monitor remembers; nil is the one that is built in.
	Runtime *runtime.Command `json:"runtime,omitempty"`
	// Cgroup is the absolute path of the container's cgroup, where its want of memory is counted.
	Cgroup string `json:"cgroup,omitempty"`
}

// CreateResponse is the answer to a CreateRequest.
type CreateResponse struct {
	PID int `json:"pid"`
}

// RestoreRequest asks for a container that has no process before it is started: Start makes those of a dump. It is no part of
// CreateRequest, of which an older crimonitor would leave it out.
type RestoreRequest struct {
	CreateRequest
	From runtime.Images `json:"from"`
}

// DumpRequest has the state of the processes of a running container written down. They go on, also if the client hangs up, which
// gives the dump up.
type DumpRequest struct {
	ID string         `json:"id"`
	To runtime.Images `json:"to"`
}

// IDRequest names the container of Start, Reopen and Delete. Bundle is used by Delete only, for a container that
// this monitor does not know: one whose monitor died.
type IDRequest struct {
	ID     string `json:"id"`
	Bundle string `json:"bundle,omitempty"`
}

// SignalRequest sends a signal to a container's init process, or (All) to every process in its cgroup.
type SignalRequest struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

// ExecRequest runs a process in a container. Its stdin, stdout and stderr are the three descriptors that come with
// the request, or, for a process with a terminal, there is one: a socket to which the terminal's master is sent, see
// Console. The bytes do not pass through the monitor.
type ExecRequest struct {
	ID      string         `json:"id"`
	Process *specs.Process `json:"process"`
	// Timeout kills the process and what it has started; 0 is none.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Grace is how long the process has after a SIGHUP when the client hangs up, which goes to what it leaves behind too, before it is
	// killed; it is killed at once if it is 0. If it is negative, the process goes on, and the monitor takes what it prints.
	Grace time.Duration `json:"grace,omitempty"`
}

// ExecResponse tells how an executed process ended.
type ExecResponse struct {
	ExitCode int  `json:"exit_code"`
	TimedOut bool `json:"timed_out,omitempty"`
	// ContainerEnded tells that it was killed since its container had ended.
	ContainerEnded bool `json:"container_ended,omitempty"`
}

// AttachRequest connects a client to the output and the input of a container. The descriptors that come with it get what
// the container prints from now on, stdout and stderr, /dev/null for one that is not wanted. A client that does not
// take the output is dropped before it holds up the container.
type AttachRequest struct {
	ID string `json:"id"`
	// Stdin asks for a descriptor of the container's input, which comes with the response.
	Stdin bool `json:"stdin,omitempty"`
}

// AttachResponse is the first answer to an AttachRequest.
type AttachResponse struct {
	// Terminal tells that the container has one. Then there is no stderr, and the descriptor that comes with the response,
	// whether or not stdin was asked for, is the terminal's master, to be written and resized, not to be read.
	Terminal bool `json:"terminal,omitempty"`
}

// AttachEnd is the second one.
type AttachEnd struct {
	// Lagged tells that the client did not take the output; else the output has ended.
	Lagged bool `json:"lagged,omitempty"`
}

// Phase of a container in the monitor.
type Phase string

// The phases, in their order.
const (
	PhaseCreated Phase = "created"
	PhaseRunning Phase = "running"
	PhaseExited  Phase = "exited"
)

// State is what the monitor knows of a container.
type State struct {
	ID    string `json:"id"`
	Phase Phase  `json:"phase"`
	// PID of the init process on the host; it stays after the exit. 0 before the start of a container that is restored.
	PID int `json:"pid"`
	// StartedAt is when the workload was let go.
	StartedAt time.Time `json:"started_at,omitzero"`
	// ExitedAt, ExitCode and OOMKilled are set when Phase is PhaseExited. The code is 128+n for signal n.
	ExitedAt  time.Time `json:"exited_at,omitzero"`
	ExitCode  int       `json:"exit_code,omitempty"`
	OOMKilled bool      `json:"oom_killed,omitempty"`
	// OOMCause says in words what was short of memory; "" if it is not known.
	OOMCause string `json:"oom_cause,omitempty"`
	// LogBytesLost counts output that could not be written to the log file.
	LogBytesLost int64 `json:"log_bytes_lost,omitempty"`
	// LogBytesDropped counts output that was more than LogRate.
	LogBytesDropped int64 `json:"log_bytes_dropped,omitempty"`
}

// Event is one frame of a Watch: exactly one field is set.
type Event struct {
	// State is a container as it is now.
	State *State `json:"state,omitempty"`
	// Removed is the ID of a container that was deleted.
	Removed string `json:"removed,omitempty"`
	// Synced follows the states of all containers that existed when the watch began.
	Synced bool `json:"synced,omitempty"`
}

var codes = map[string]error{
	"not_found":   ErrNotFound,
	"exists":      ErrExists,
	"not_running": ErrNotRunning,
	"busy":        ErrBusy,
	"protocol":    ErrProtocol,
	"log_file":    ErrLogFile,
}

// Code returns the wire name of an error of this package, "internal" for any other.
func Code(err error) string {
	for code, e := range codes {
		if errors.Is(err, e) {
			return code
		}
	}
	return "internal"
}

// remoteError carries the monitor's words and unwraps to the error that its code names.
type remoteError struct {
	message string
	err     error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.err }
