package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestPullsUnderKills kills the daemon at random moments of pulls and removals. After each restart each image that is listed
// is whole, and the next pulls complete; when all is removed, nothing is left on the disk. CRISERVER_E2E_KILLS is how often,
// CRISERVER_E2E_SEED repeats a run.
func TestPullsUnderKills(t *testing.T) {
	rng, seed := seeded(t)
	kills := number(t, "CRISERVER_E2E_KILLS", 30)
	var images []string
	for i := range 4 {
		images = append(images, checkedImage(t, fmt.Sprint("kill", i), 3, 2048))
	}
	n := newNode(t)
	n.collect()
	before := n.stored()
	begin := time.Now()
	if got := n.pullAll(t.Context(), images); len(got) != len(images) {
		t.Fatalf("pulled only %v\n%s", got, n.log())
	}
	span := time.Since(begin)
	t.Logf("seed %d, %d kills; all images are pulled in %s", seed, kills, span)
	check := newChecker(n)
	var cutOff, listed int
	for kill := range kills {
		for _, name := range images {
			if rng.IntN(4) > 0 {
				n.removeImage(name)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		pulls := make(chan map[string]time.Time, 1)
		go func() { pulls <- n.pullAll(ctx, images) }()
		time.Sleep(time.Duration(rng.Float64() * 1.5 * float64(span)))
		n.kill()
		cancel()
		done := <-pulls
		cutOff += len(images) - len(done)
		if rng.IntN(4) == 0 { // in the middle of what it repairs at its start
			n.launch()
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			n.kill()
		}
		n.start()
		visible := n.visible()
		listed += len(visible)
		for _, name := range visible {
			check.whole(name)
		}
		for name := range done {
			if !slices.Contains(visible, name) {
				t.Errorf("kill %d: %s is gone, whose pull had succeeded\n%s", kill, name, n.log())
			}
		}
		// Not each time: what is half made shall also meet the next kill.
		if rng.IntN(3) == 0 {
			if got := n.pullAll(t.Context(), images); len(got) != len(images) {
				t.Fatalf("kill %d: pulled after it only %v\n%s", kill, got, n.log())
			}
			check.whole(images[rng.IntN(len(images))])
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d pulls were cut off, %d times an image was listed after a kill", cutOff, listed)
	if cutOff < kills/2 {
		t.Errorf("only %d pulls were cut off by %d kills: the test did not test much", cutOff, kills)
	}
	if got := n.pullAll(t.Context(), images); len(got) != len(images) {
		t.Fatalf("pulled at the end only %v\n%s", got, n.log())
	}
	for _, name := range images {
		check.whole(name)
	}
	check.end()
	for _, name := range images {
		n.removeImage(name)
	}
	n.collect()
	n.wantStored(before)
}
