package registry

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

	"criserver/pkg/imagesvc/verify"
)

// What can go wrong; test with errors.Is. An error is of one kind at most.
var (
	// ErrInvalid: a name, credential or configuration that can never work.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: the registry has no such image.
	ErrNotFound = errors.New("not found in registry")
	// ErrUnauthorized: the registry refuses the image to these credentials. Many also say so of what does not exist.
	ErrUnauthorized = errors.New("not authorized")
	// ErrUnavailable: no endpoint gave an answer.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrStalled: nothing came for longer than Config.NoProgress.
	ErrStalled = errors.New("stalled")
	// ErrDigest: the content is not what was asked for.
	ErrDigest = verify.ErrDigest
	// ErrTruncated: the content ended too early.
	ErrTruncated = verify.ErrTruncated
)

// advice is what to do about an error.
var advice = map[error]string{
	ErrNotFound:     "check the name and tag of the image",
	ErrUnauthorized: "check the credentials, and that the image exists",
	ErrUnavailable:  "check the network, the registry's address and the configured mirrors",
	ErrStalled:      "check the network",
	ErrDigest:       "the registry or a cache before it serves damaged content",
	ErrTruncated:    "the registry or a cache before it serves damaged content",
}

// failure is the error of a fetch. Its text has no secrets in it.
type failure struct {
	text  string
	kind  error // nil: none of the above
	cause error
}

func (f *failure) Error() string { return f.text }

// Unwrap leaves out causes of a kind of their own, such as what an endpoint said that was not the last.
func (f *failure) Unwrap() []error {
	if f.kind == nil {
		return []error{f.cause}
	}
	return []error{f.kind}
}

// status is an answer that is no success.
type status struct {
	code   int
	host   string // which may be one that the endpoint redirected to
	errors errcode.Errors
}

func (s *status) Error() string {
	if len(s.errors) > 0 {
		return fmt.Sprintf("%s (status %d)", s.errors.Error(), s.code)
	}
	return fmt.Sprintf("status %d %s", s.code, strings.ToLower(http.StatusText(s.code)))
}

// maxErrorBody bounds how much of an error's explanation is read.
const maxErrorBody = 8 << 10

func newStatus(resp *http.Response) error {
	s := &status{code: resp.StatusCode, host: resp.Request.URL.Host}
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

// kindOf sorts an endpoint's error.
func kindOf(err error) error {
	for _, kind := range []error{ErrStalled, ErrDigest, ErrTruncated} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	code := 0
	var s *status
	var fromToken *errcode.ErrorResponse
	var transport *url.Error
	switch {
	case errors.As(err, &s):
		code = s.code
	case errors.As(err, &fromToken):
		code = fromToken.StatusCode
		if code/100 == 4 && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout {
			return ErrUnauthorized // of the token server, whatever it has against the account
		}
	case errors.Is(err, errNoUse), errors.Is(err, errPlain):
		return ErrUnauthorized
	case errors.As(err, &transport), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errNoAnswer):
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

// isDamage: what an endpoint sent cannot be used.
func isDamage(kind error) bool {
	return errors.Is(kind, ErrDigest) || errors.Is(kind, ErrTruncated) || errors.Is(kind, ErrStalled)
}

// attempt is what one endpoint said.
type attempt struct {
	endpoint *endpoint
	err      error
	kind     error
}

// failed makes one error of what all endpoints said, of the kind that the registry itself said last.
func (r *Repository) failed(what string, attempts []attempt) error {
	attempts = meaningful(attempts)
	f := &failure{}
	var texts []string
	var ownSpoke bool
	for _, a := range attempts {
		texts = append(texts, a.endpoint.base.Host+": "+a.text())
		if !a.endpoint.own && ownSpoke {
			continue
		}
		if a.endpoint.own && !ownSpoke || !errors.Is(a.kind, ErrUnavailable) || f.kind == nil {
			f.kind, f.cause = a.kind, a.err
		}
		ownSpoke = ownSpoke || a.endpoint.own
	}
	f.text = what + ": " + strings.Join(texts, "; ")
	if hint := advice[f.kind]; hint != "" {
		f.text += " (" + hint + ")"
	}
	f.text = r.redact(f.text)
	return f
}

// meaningful leaves out that a server of plain HTTP speaks no TLS, when it answered otherwise after that.
func meaningful(attempts []attempt) []attempt {
	var kept []attempt
	for i, a := range attempts {
		if !errors.Is(a.err, http.ErrSchemeMismatch) || i == len(attempts)-1 {
			kept = append(kept, a)
		}
	}
	return kept
}

func (a attempt) text() string {
	if errors.Is(a.kind, ErrUnauthorized) {
		return a.endpoint.keys.explain(a.err)
	}
	return innermost(a.err)
}

// innermost leaves out method and URL, which net/http puts before the cause.
func innermost(err error) string {
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

// redact takes secrets out of a text, a server's answer included.
func (r *Repository) redact(text string) string {
	text = userInfos.ReplaceAllString(queries.ReplaceAllString(text, "?…"), "://…@")
	return r.secrets.redact(text)
}
