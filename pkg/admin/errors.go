package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/opfile"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/record"
	"criserver/pkg/sandbox"
)

// Errors of the protocol itself; those of the services come through it as they are. Test with errors.Is, on both sides.
var (
	// ErrUnsupported: the daemon cannot do this.
	ErrUnsupported = errors.New("not supported by this daemon")
	// ErrInvalid: a request that can never succeed.
	ErrInvalid = errors.New("invalid request")
	// ErrTooLarge: a request longer than any that is meant.
	ErrTooLarge = errors.New("request is too large")
	// ErrSlow: a client that stopped in the middle of its request.
	ErrSlow = errors.New("the rest of the request does not come")
	// ErrMethod: an HTTP method that the call does not have.
	ErrMethod = errors.New("method not allowed")
	// ErrInUse: containers are made of the image, or it has other names, and the request does not force it.
	ErrInUse = errors.New("image is in use")
	// ErrStopping: the daemon has been told to end.
	ErrStopping = errors.New("criserver stops")
)

// Errors of the client alone.
var (
	// ErrNoDaemon: nobody answers on the socket.
	ErrNoDaemon = errors.New("criserver does not answer")
	// ErrCutOff: the daemon's answer ended too early.
	ErrCutOff = errors.New("criserver's answer was cut off; its log tells more")
)

// statusClosed is what nginx has for a client that has gone; nobody reads it but the log.
const statusClosed = 499

const codeInternal = "internal"

// codeTable is the one place where errors get their code and HTTP status, and codes their error again; the first that fits
// wins. A code is in it once.
var codeTable = []struct {
	err    error
	code   string
	status int
}{
	{ErrStopping, "stopping", http.StatusServiceUnavailable},
	{ErrUnsupported, "unsupported", http.StatusNotImplemented},
	{ErrTooLarge, "too-large", http.StatusRequestEntityTooLarge},
	{ErrSlow, "slow", http.StatusRequestTimeout},
	{ErrMethod, "method", http.StatusMethodNotAllowed},
	{ErrInUse, "in-use", http.StatusConflict},
	{ErrInvalid, "invalid", http.StatusBadRequest},
	{context.Canceled, "canceled", statusClosed},
	{context.DeadlineExceeded, "deadline", http.StatusGatewayTimeout},
	{sandbox.ErrAmbiguous, "container-ambiguous", http.StatusBadRequest},
	{sandbox.ErrState, "container-state", http.StatusConflict},
	{sandbox.ErrUnavailable, "monitor-unavailable", http.StatusServiceUnavailable},
	{sandbox.ErrNoMonitor, "no-monitor", http.StatusServiceUnavailable},
	{sandbox.ErrNotFound, "container-not-found", http.StatusNotFound},
	{imagesvc.ErrNotFound, "image-not-found", http.StatusNotFound},
	{opfile.ErrHangs, "file-hangs", http.StatusServiceUnavailable},
	{imagesvc.ErrInvalid, "image-invalid", http.StatusBadRequest},
	{imagesvc.ErrUntrusted, "image-untrusted", http.StatusForbidden},
	{imagesvc.ErrNoSpace, "no-space", http.StatusInsufficientStorage},
	{record.ErrFull, "no-space-for-records", http.StatusInsufficientStorage},
	{registry.ErrInvalid, "registry-invalid", http.StatusBadRequest},
	{registry.ErrNotFound, "registry-not-found", http.StatusNotFound},
	{registry.ErrUnauthorized, "registry-unauthorized", http.StatusForbidden},
	{registry.ErrUnavailable, "registry-unavailable", http.StatusServiceUnavailable},
	{registry.ErrStalled, "registry-stalled", http.StatusGatewayTimeout},
	{registry.ErrDigest, "digest", http.StatusBadGateway},
	{registry.ErrTruncated, "truncated", http.StatusBadGateway},
}

// Error is an error on its way through the protocol. It is the error of the table that has its code, to errors.Is.
type Error struct {
	Text string `json:"error"`
	Code string `json:"code"`
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns the error that the code stands for; nil for a code that this version does not know.
func (e *Error) Unwrap() error {
	for _, row := range codeTable {
		if row.code == e.Code {
			return row.err
		}
	}
	return nil
}

// encodeError gives an error its form for the wire and its status.
func encodeError(err error) (*Error, int) {
	for _, row := range codeTable {
		if errors.Is(err, row.err) {
			return &Error{Text: err.Error(), Code: row.code}, row.status
		}
	}
	return &Error{Text: err.Error(), Code: codeInternal}, http.StatusInternalServerError
}

// told adds that the daemon has cancelled an operation, which shows in its error in many ways.
func told(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), ErrStopping) && !errors.Is(err, ErrStopping) {
		return fmt.Errorf("%w: %w", ErrStopping, err)
	}
	return err
}

// decodeError reads the error of an answer that is no success.
func decodeError(resp *http.Response) error {
	var e Error
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	if err != nil || json.Unmarshal(body, &e) != nil || e.Text == "" {
		return fmt.Errorf("criserver answered %s, in a form that it does not have: is another program on its socket?", resp.Status)
	}
	return &e
}
