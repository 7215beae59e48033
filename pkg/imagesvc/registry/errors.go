package registry

import (
	"errors"

	"criserver/pkg/imagesvc/registry/failure"
)

// What can go wrong, see package failure; test with errors.Is. An error is of one kind at most.
var (
	ErrInvalid      = failure.ErrInvalid
	ErrNotFound     = failure.ErrNotFound
	ErrUnauthorized = failure.ErrUnauthorized
	ErrUnavailable  = failure.ErrUnavailable
	ErrStalled      = failure.ErrStalled
	ErrDigest       = failure.ErrDigest
	ErrTruncated    = failure.ErrTruncated
)

// attempt is what one endpoint said.
type attempt struct {
	endpoint *endpoint
	err      error
	kind     error
}

// failed makes one error of what all endpoints said.
func (r *Repository) failed(what string, attempts []attempt) error {
	var said []failure.Attempt
	for _, a := range attempts {
		text := failure.Innermost(a.err)
		if errors.Is(a.kind, ErrUnauthorized) {
			text = a.endpoint.keys.Explain(a.err, text)
		}
		said = append(said, failure.Attempt{Host: a.endpoint.base.Host, Own: a.endpoint.own, Err: a.err, Kind: a.kind, Text: text})
	}
	return failure.Join(what, said, r.redact)
}

// redact takes secrets out of a text, a server's answer included.
func (r *Repository) redact(text string) string { return r.secrets.Redact(failure.WithoutKeys(text)) }
