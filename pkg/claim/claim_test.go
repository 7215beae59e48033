package claim

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestExclude(t *testing.T) {
	var c Claims
	release, err := c.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := c.Acquire(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	if _, free := c.Try("a"); free {
		t.Error("a taken name was claimed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Acquire(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("claim of a taken name: %v", err)
	}
	release()
	again, err := c.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	again()
	if len(c.held) != 0 {
		t.Errorf("claims left: %v", c.held)
	}
}
