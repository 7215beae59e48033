package sandbox

import (
	"errors"

	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/monitor"
)

// Errors that the service returns, wrapped; test with errors.Is.
var (
	// ErrNotFound: no pod or container of that ID.
	ErrNotFound = ledger.ErrNotFound
	// ErrState: the pod or container is in a state that does not allow the operation.
	ErrState = ledger.ErrState
	// ErrExists: another pod or container has the name and attempt.
	ErrExists = ledger.ErrExists
	// ErrAmbiguous: an ID prefix fits several pods or containers.
	ErrAmbiguous = ledger.ErrAmbiguous
	// ErrTimeout: an executed command ran out of its time.
	ErrTimeout = errors.New("timed out")
	// ErrRecursiveReadOnly: what is mounted below a host path cannot be made read-only.
	ErrRecursiveReadOnly = errors.New("recursive read-only mounts are not supported")
	// ErrUnavailable: what this takes does not work now, such as a runtime handler.
	ErrUnavailable = errors.New("unavailable")
	// ErrNoMonitor: crimonitor does not answer.
	ErrNoMonitor = monitor.ErrUnavailable
	// ErrLogFile: something is at the log path that is no file to append to.
	ErrLogFile = monitor.ErrLogFile
)
