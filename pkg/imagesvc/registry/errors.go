package registry

import "errors"

// Errors that this package returns, wrapped with the reference and the host; test with errors.Is.
var (
	// ErrInvalid: the reference is none.
	ErrInvalid = errors.New("invalid reference")
	// ErrNotFound: no endpoint has the image or blob.
	ErrNotFound = errors.New("not found in the registry")
	// ErrUnauthorized: the registry refuses the credentials, or wants some.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrUnavailable: no endpoint answered, or all of them failed.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrTruncated: the content ended before its size.
	ErrTruncated = errors.New("content is cut off")
	// ErrDigest: the content does not have its digest, or is longer than its size.
	ErrDigest = errors.New("content does not match its digest")
	// ErrStalled: no byte came for the no-progress timeout.
	ErrStalled = errors.New("the server stopped sending")
)
