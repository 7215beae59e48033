package overlay_test

import (
	"testing"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/overlay"
	"criserver/pkg/snapshot/snapshottest"
)

func TestConformance(t *testing.T) {
	snapshottest.Run(t, "overlay", func(t *testing.T) snapshot.Snapshotter {
		s, err := overlay.New(snapshottest.Root(t))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
