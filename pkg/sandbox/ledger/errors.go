package ledger

import "errors"

// Errors of looking up and adding, wrapped; test with errors.Is.
var (
	// ErrNotFound: no pod or container of that ID.
	ErrNotFound = errors.New("not found")
	// ErrState: the pod or container is in a state that does not allow the operation.
	ErrState = errors.New("wrong state")
	// ErrExists: another pod or container has the name and attempt.
	ErrExists = errors.New("already exists")
	// ErrAmbiguous: an ID prefix fits several pods or containers.
	ErrAmbiguous = errors.New("ambiguous ID")
)
