package sandbox

import (
	"errors"
	"testing"

	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/spec"
)

func TestRecursiveReadOnlyMounts(t *testing.T) {
	s := &Service{}
	in := []spec.Mount{{Source: t.TempDir(), Destination: "/v", ReadOnly: true, RecursiveReadOnly: true}}
	if _, err := s.resolveMounts(t.Context(), handler.Usable{}, in); !errors.Is(err, ErrRecursiveReadOnly) {
		t.Errorf("a handler without features: %v", err)
	}
	can := handler.Usable{Features: handler.Features{RecursiveReadOnlyMounts: true}}
	if got, err := s.resolveMounts(t.Context(), can, in); err != nil || len(got) != 1 || !got[0].RecursiveReadOnly {
		t.Errorf("a handler that can: %+v, %v", got, err)
	}
	in[0].RecursiveReadOnly = false
	if _, err := s.resolveMounts(t.Context(), handler.Usable{}, in); err != nil {
		t.Errorf("a plain mount: %v", err)
	}
}
