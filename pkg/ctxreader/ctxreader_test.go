package ctxreader

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestNewEndsWithItsContext(t *testing.T) {
	cause := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	r := New(ctx, strings.NewReader("abcdef"))
	first := make([]byte, 3)
	if _, err := io.ReadFull(r, first); err != nil || string(first) != "abc" {
		t.Fatalf("read %q, %v, want %q", first, err, "abc")
	}
	cancel(cause)
	if rest, err := io.ReadAll(r); !errors.Is(err, cause) || len(rest) > 0 {
		t.Errorf("read %q, %v after the end of the context, want its cause and nothing", rest, err)
	}
}
