package spec

import (
	"errors"
	"fmt"
)

// ErrInvalid is in the chain of every error that the caller's input is to blame for.
var ErrInvalid = errors.New("invalid")

// FieldError is an ErrInvalid that names the field of the CRI request.
type FieldError struct {
	Field  string // dotted, below ContainerConfig (and LinuxContainerConfig): "capabilities.add_capabilities"
	Reason string
}

// Invalidf makes a FieldError.
func Invalidf(field, format string, args ...any) error {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Unwrap makes errors.Is(err, ErrInvalid) true.
func (e *FieldError) Unwrap() error { return ErrInvalid }
