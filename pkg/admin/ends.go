package admin

import (
	"errors"
	"io"
	"sync/atomic"
)

// source keeps the error of a caller's reader, which would otherwise look like one of the connection.
type source struct {
	r      io.Reader
	failed atomic.Pointer[error]
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed.Store(&err)
	}
	return n, err
}

// target keeps the error of a caller's writer.
type target struct {
	w   io.Writer
	err error
}

func (t *target) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.err = err
	return n, err
}
