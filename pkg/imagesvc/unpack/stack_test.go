package unpack

import (
	"bytes"
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/overlay"
)

// stackTars unpacks the tars as layers, uppermost first to show that the order does not matter, and mounts a snapshot.
func stackTars(t *testing.T, tars ...[]byte) string {
	t.Helper()
	needRoot(t)
	driver, err := overlay.New(t.TempDir(), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := driver.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	var layers []digest.Digest
	for _, data := range tars {
		layers = append(layers, digest.FromBytes(data))
	}
	for i, data := range slices.Backward(tars) {
		stage, err := driver.Stage(t.Context(), layers[:i+1])
		if err != nil {
			t.Fatal(err)
		}
		result, err := Apply(t.Context(), stage.Dir(), bytes.NewReader(data), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		stage.(snapshot.Inheritor).Inherit(result.Implied)
		if err := stage.Commit(t.Context(), result.Usage); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := driver.Prepare(t.Context(), "key", layers)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	t.Cleanup(func() {
		if err := snapshot.Unmount(root); err != nil {
			t.Error(err)
		}
	})
	if err := snapshot.MountAll(mounts, root); err != nil {
		t.Fatal(err)
	}
	return root
}

func wantNames(t *testing.T, root, name string, want ...string) {
	t.Helper()
	var got []string
	entries, err := os.ReadDir(root + "/" + name)
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s lists %q, %v; want %q", name, got, err, want)
	}
}

func TestLayersAsAContainerSeesThem(t *testing.T) {
	tmp := dir("tmp")
	tmp.Mode, tmp.Uid = 0o1777, 12
	root := stackTars(t,
		makeTar(t, tmp, dir("etc"), file("etc/gone", "1"), file("etc/kept", "1"), dir("cache"), file("cache/old", "1"),
			dir("both"), file("both/old", "1"), dir("swap"), file("swap/old", "1"), file("f", "1")),
		makeTar(t, file("etc/.wh.gone", ""), file("cache/.wh..wh..opq", ""), file("cache/new", "2"),
			file(".wh.both", ""), dir("both"), file("both/new", "2"), file("swap", "now a file"), file("f", "2")),
		makeTar(t, file("tmp/x", "3"), file("swap/new", "3"), file("back/y", "3")),
	)
	wantNames(t, root, ".", "back", "both", "cache", "etc", "f", "swap", "tmp")
	wantNames(t, root, "etc", "kept")
	wantNames(t, root, "cache", "new")
	wantNames(t, root, "both", "new")
	wantNames(t, root, "swap", "new")
	wantNames(t, root, "tmp", "x")
	wantContent(t, root, "f", "2")
	wantMode(t, root, "tmp", unix.S_IFDIR|0o1777) // implied by the uppermost layer
	if uid := stat(t, root, "tmp").Uid; uid != 12 {
		t.Errorf("tmp belongs to %d, want 12", uid)
	}
}
