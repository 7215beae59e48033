package credential

import (
	"context"

	"golang.org/x/sync/singleflight"
)

// flights makes equal calls at the same time one. The call has no deadline of its callers, whom it may outlive; it must
// end by itself.
type flights[T any] struct{ group singleflight.Group }

func (f *flights[T]) do(ctx context.Context, key string, call func(context.Context) (T, error)) (T, error) {
	result := f.group.DoChan(key, func() (any, error) { return call(context.WithoutCancel(ctx)) })
	var none T
	select {
	case <-ctx.Done():
		return none, context.Cause(ctx)
	case r := <-result:
		v, _ := r.Val.(T)
		return v, r.Err
	}
}
