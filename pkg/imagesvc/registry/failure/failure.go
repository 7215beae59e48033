// Package failure sorts what goes wrong between a registry and us, and makes one error, without secrets, of what all endpoints
// of a registry said.
package failure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"oras.land/oras-go/v2/registry/remote/errcode"

	"criserver/pkg/imagesvc/registry/keyring"
	"criserver/pkg/imagesvc/registry/names"
	"criserver/pkg/imagesvc/verify"
)

// What can go wrong; test with errors.Is. An error is of one kind at most.
var (
	// ErrInvalid: a name, credential or configuration that can never work.
	ErrInvalid = names.ErrInvalid
	// ErrNotFound: the registry has no such image.
	ErrNotFound = errors.New("not found in registry")
	// ErrUnauthorized: the registry refuses the image to these credentials. Many also say so of what does not exist.
	ErrUnauthorized = errors.New("not authorized")
	// ErrUnavailable: no endpoint gave an answer.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrStalled: nothing, or too little, came for longer than Config.NoProgress.
	ErrStalled = errors.New("stalled")
	// ErrDigest: the content is not what was asked for.
	ErrDigest = verify.ErrDigest
	// ErrTruncated: the content ended too early.
	ErrTruncated = verify.ErrTruncated
)

// ErrNoAnswer says that a mirror took a connection, and then said nothing. It is of the kind ErrUnavailable.
var ErrNoAnswer = errors.New("no answer in time")

// advice is what to do about an error.
var advice = map[error]string{
	ErrNotFound:     "check the name and tag of the image",
	ErrUnauthorized: "check the credentials, and that the image exists",
	ErrUnavailable:  "check the network, the registry's address and the configured mirrors",
	ErrStalled:      "check the network",
	ErrDigest:       "the registry or a cache before it serves damaged content",
	ErrTruncated:    "the registry or a cache before it serves damaged content",
}

// Error is the error of a fetch. Its text has no secrets in it.
type Error struct {
	text  string
	kind  error // nil: none of the above
	cause error
}

func (f *Error) Error() string { return f.text }

// Unwrap leaves out causes of a kind of their own, such as what an endpoint said that was not the last.
func (f *Error) Unwrap() []error {
	if f.kind == nil {
		return []error{f.cause}
	}
	return []error{f.kind}
}

// Status is an answer that is no success.
type Status struct {
	Code   int
	Host   string // which may be one that the endpoint redirected to
	errors errcode.Errors
}

func (s *Status) Error() string {
	if len(s.errors) > 0 {
		return fmt.Sprintf("%s (status %d)", s.errors.Error(), s.Code)
	}
	return fmt.Sprintf("status %d %s", s.Code, strings.ToLower(http.StatusText(s.Code)))
}

// maxErrorBody bounds how much of an error's explanation is read.
const maxErrorBody = 8 << 10

// NewStatus reads an answer, whose body the caller closes.
func NewStatus(resp *http.Response) error {
	s := &Status{Code: resp.StatusCode, Host: resp.Request.URL.Host}
	var body struct {
		Errors errcode.Errors `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, maxErrorBody)).Decode(&body) == nil {
		for i := range body.Errors {
			body.Errors[i].Detail = nil // of any form and length
		}
		s.errors = body.Errors
	}
	return s
}

// KindOf sorts an endpoint's error: one of the kinds, or nil.
func KindOf(err error) error {
	for _, kind := range []error{ErrStalled, ErrDigest, ErrTruncated} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	code := 0
	var s *Status
	var fromToken *errcode.ErrorResponse
	var transport *url.Error
	switch {
	case errors.As(err, &s):
		code = s.Code
	case errors.As(err, &fromToken):
		code = fromToken.StatusCode
		if code/100 == 4 && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout {
			return ErrUnauthorized // of the token server, whatever it has against the account
		}
	case errors.Is(err, keyring.ErrNoUse), errors.Is(err, keyring.ErrPlain):
		return ErrUnauthorized
	case errors.As(err, &transport), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, ErrNoAnswer):
		return ErrUnavailable
	}
	switch {
	case code == http.StatusNotFound:
		return ErrNotFound
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return ErrUnauthorized
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code >= 500:
		return ErrUnavailable
	}
	return nil
}

// IsDamage tells of an error, or of its kind, that what the endpoint sent cannot be used.
func IsDamage(err error) bool {
	return errors.Is(err, ErrDigest) || errors.Is(err, ErrTruncated) || errors.Is(err, ErrStalled)
}

// Attempt is what one endpoint said.
type Attempt struct {
	// Host is the endpoint's; Own says that it is the registry itself.
	Host string
	Own  bool
	Err  error
	// Kind is KindOf of Err.
	Kind error
	// Text says it to people.
	Text string
}

// Join makes one error of what all endpoints said, of the kind that the registry itself said last. Its text has passed redact.
func Join(what string, attempts []Attempt, redact func(string) string) error {
	attempts = meaningful(attempts)
	f := &Error{}
	var texts []string
	var ownSpoke bool
	for _, a := range attempts {
		texts = append(texts, a.Host+": "+a.Text)
		if !a.Own && ownSpoke {
			continue
		}
		if a.Own && !ownSpoke || !errors.Is(a.Kind, ErrUnavailable) || f.kind == nil {
			f.kind, f.cause = a.Kind, a.Err
		}
		ownSpoke = ownSpoke || a.Own
	}
	f.text = what + ": " + strings.Join(texts, "; ")
	if hint := advice[f.kind]; hint != "" {
		f.text += " (" + hint + ")"
	}
	f.text = redact(f.text)
	return f
}

// meaningful leaves out that a server of plain HTTP speaks no TLS, when it answered otherwise after that.
func meaningful(attempts []Attempt) []Attempt {
	var kept []Attempt
	for i, a := range attempts {
		if !errors.Is(a.Err, http.ErrSchemeMismatch) || i == len(attempts)-1 {
			kept = append(kept, a)
		}
	}
	return kept
}

// Innermost is an error's text without method and URL, which net/http puts before the cause.
func Innermost(err error) string {
	var transport *url.Error
	if errors.As(err, &transport) {
		err = transport.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return err.Error()
}

// Registries redirect to URLs whose query is a key to the content, and URLs can have passwords.
var (
	queries   = regexp.MustCompile(`\?[^\s"]+`)
	userInfos = regexp.MustCompile(`://[^\s"/@]+@`)
)

// WithoutKeys takes out of a text what is secret in the URLs of it.
func WithoutKeys(text string) string {
	return userInfos.ReplaceAllString(queries.ReplaceAllString(text, "?…"), "://…@")
}
