package waiting

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestFor(t *testing.T) {
	mine := errors.New("mine")
	if v, err := For(t.Context(), func() (int, error) { return 7, mine }); v != 7 || !errors.Is(err, mine) {
		t.Errorf("what returns: %d, %v", v, err)
	}
	late := errors.New("late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, late)
	defer cancel()
	end, ended := make(chan struct{}), make(chan struct{})
	v, err := For(ctx, func() (int, error) {
		defer close(ended)
		<-end
		return 7, nil
	})
	if v != 0 || !errors.Is(err, late) {
		t.Errorf("what hangs: %d, %v", v, err)
	}
	close(end)
	<-ended // it goes on
	if err := On(ctx, func() { time.Sleep(time.Minute) }); !errors.Is(err, late) {
		t.Errorf("a wait: %v", err)
	}
	if err := On(t.Context(), func() {}); err != nil {
		t.Error(err)
	}
}
