// Package waiting bounds the wait for what has no context of its own. What is waited for goes on after that.
package waiting

import (
	"context"
	"fmt"
)

// On returns when wait does, or at the end of ctx, with its cause.
func On(ctx context.Context, wait func()) error {
	_, err := For(ctx, func() (struct{}, error) {
		wait()
		return struct{}{}, nil
	})
	return err
}

// For returns what fn does, or at the end of ctx an error with its cause. fn must share nothing with the caller that is not safe then.
func For[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := fn()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("no answer: %w", context.Cause(ctx))
	}
}
