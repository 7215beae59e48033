package admin

import (
	"errors"
	"io"
	"sync/atomic"
)

// source is a caller's reader as the body of a request. Close ends a Read although the caller's is blocked, as that of a
// terminal may be; net/http, which waits for it, would otherwise not notice that a context has ended.
type source struct {
	*io.PipeReader
	err atomic.Pointer[error]
}

func newSource(r io.Reader) *source {
	pr, pw := io.Pipe()
	s := &source{PipeReader: pr}
	go func() {
		_, err := io.Copy(pw, callers{r, s})
		_ = pw.CloseWithError(err)
	}()
	return s
}

// failed is the error of the caller's reader, which would otherwise look like one of the connection.
func (s *source) failed() error {
	if err := s.err.Load(); err != nil {
		return *err
	}
	return nil
}

// callers is the caller's reader.
type callers struct {
	r io.Reader
	s *source
}

func (c callers) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		c.s.err.Store(&err)
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
