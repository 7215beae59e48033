package cleaner_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"criserver/pkg/imagesvc/cleaner"
)

func TestCleaner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cleaner.Cleaner
		c.Wake()
		c.Stop() // before the start: nothing
		var runs atomic.Int64
		run := func(context.Context) { runs.Add(1) }
		c.Start(t.Context(), time.Hour, run)
		c.Start(t.Context(), time.Second, run)
		want := func(n int64) {
			t.Helper()
			if synctest.Wait(); runs.Load() != n {
				t.Errorf("%d runs, want %d", runs.Load(), n)
			}
		}
		want(1)
		c.Wake()
		want(2)
		time.Sleep(time.Hour)
		want(3)
		c.Stop()
		c.Wake()
		time.Sleep(2 * time.Hour)
		want(3)
	})
}

func TestStopEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cleaner.Cleaner
		c.Start(t.Context(), time.Hour, func(ctx context.Context) { <-ctx.Done() })
		synctest.Wait()
		c.Stop()
	})
}
