package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
)

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func wantSnapshots(t *testing.T, f *fixture, want ...string) {
	t.Helper()
	got, err := f.Snapshots(t.Context())
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("snapshots %q, %v; want %q", got, err, want)
	}
}

func wantLayers(t *testing.T, f *fixture, want ...digest.Digest) {
	t.Helper()
	got, err := f.ListLayers(t.Context())
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("layers %q, %v; want %q", got, err, want)
	}
}

func testMountsAgain(t *testing.T, f *fixture) {
	layers := f.image(file("f", "1"), file("g", "2"))
	root := f.prepare("again", layers)
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(root, fmt.Sprint(i)), []byte("kept"), 0o644); err != nil {
			t.Fatal(err)
		}
		f.unmount(root)
		mounts, err := f.Mounts(t.Context(), "again")
		if err != nil {
			t.Fatal(err)
		}
		root = f.mount(mounts)
		wantContent(t, root, fmt.Sprint(i), "kept")
	}
	f.view("view", layers)
	mounts, err := f.Mounts(t.Context(), "view")
	if err != nil {
		t.Fatal(err)
	}
	wantReadOnly(t, f.mount(mounts))
}

func testStageErrors(t *testing.T, f *fixture) {
	ctx := t.Context()
	chain := f.image(file("f", "1"))
	_, err := f.Stage(ctx, chain)
	wantError(t, "stage a committed layer", err, snapshot.ErrExists)
	unknown := digest.FromString("unknown")
	_, err = f.Layer(ctx, []digest.Digest{unknown})
	wantError(t, "usage of an unknown layer", err, snapshot.ErrNotFound)
	for _, bad := range [][]digest.Digest{nil, {""}, {"sha256:../../../etc"}} {
		stage, err := f.Stage(ctx, bad)
		if err == nil {
			t.Errorf("stage of chain %q succeeds", bad)
			if err := stage.Abort(ctx); err != nil {
				t.Error(err)
			}
		}
	}
}

func testSnapshotErrors(t *testing.T, f *fixture) {
	ctx := t.Context()
	layers := f.image(file("f", "1"))
	f.prepare("taken", layers)
	missing := append(slices.Clone(layers), digest.FromString("unknown"))
	for name, create := range map[string]func(context.Context, string, []digest.Digest) ([]snapshot.Mount, error){
		"prepare": f.Prepare,
		"view":    f.View,
	} {
		_, err := create(ctx, "taken", layers)
		wantError(t, name+" a taken key", err, snapshot.ErrExists)
		_, err = create(ctx, "new", missing)
		wantError(t, name+" of an unknown layer", err, snapshot.ErrNotFound)
		for _, key := range []string{"", "..", "a/b", "../../x", ".hidden", "a\x00b", "a:b"} {
			_, err = create(ctx, key, layers)
			wantError(t, fmt.Sprintf("%s with key %q", name, key), err, snapshot.ErrInvalid)
		}
	}
	_, err := f.Mounts(ctx, "none")
	wantError(t, "mounts of an unknown key", err, snapshot.ErrNotFound)
	_, err = f.Usage(ctx, "none")
	wantError(t, "usage of an unknown key", err, snapshot.ErrNotFound)
	wantSnapshots(t, f, "taken")
}

func testLayerInUse(t *testing.T, f *fixture) {
	ctx := t.Context()
	layers := f.image(file("f", "1"), file("g", "2"))
	f.prepare("user", layers)
	for _, layer := range layers {
		wantError(t, "remove a used layer", f.RemoveLayer(ctx, layer), snapshot.ErrInUse)
	}
	wantLayers(t, f, layers...)
	f.remove("user")
	for _, layer := range slices.Backward(layers) {
		if err := f.RemoveLayer(ctx, layer); err != nil {
			t.Errorf("remove an unused layer: %v", err)
		}
	}
	wantLayers(t, f)
	f.image(file("f", "again"))
	wantContent(t, f.view("again", layers[:1]), "f", "again")
}

func testAbortLeavesNothing(t *testing.T, f *fixture) {
	ctx := t.Context()
	chain := []digest.Digest{digest.FromString(t.Name())}
	stage, err := f.Stage(ctx, chain)
	if err != nil {
		t.Fatal(err)
	}
	wantNames(t, stage.Dir())
	if err := file("a/b", "x")(stage.Dir()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := stage.Abort(ctx); err != nil {
			t.Errorf("abort: %v", err)
		}
	}
	if _, err := os.Stat(stage.Dir()); !os.IsNotExist(err) {
		t.Errorf("stage directory after abort: %v", err)
	}
	wantLayers(t, f)
	if err := stage.Commit(ctx, snapshot.Usage{}); err == nil {
		t.Error("commit after abort succeeds")
	}
	f.commit(chain, file("f", "1"))
	wantNames(t, f.prepare("after", chain), "f")
}

func testRemoveIsIdempotent(t *testing.T, f *fixture) {
	ctx := t.Context()
	layers := f.image(file("f", "1"))
	f.unmount(f.prepare("key", layers))
	for range 3 {
		f.remove("key")
	}
	f.remove("never")
	f.remove("../../etc")
	for _, layer := range []digest.Digest{layers[0], layers[0], digest.FromString("never")} {
		if err := f.RemoveLayer(ctx, layer); err != nil {
			t.Errorf("remove layer: %v", err)
		}
	}
	wantSnapshots(t, f)
	wantLayers(t, f)
}

func testRemoveDropsContent(t *testing.T, f *fixture) {
	layers := f.image(file("f", "1"))
	root := f.prepare("key", layers)
	if err := os.WriteFile(filepath.Join(root, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f.unmount(root)
	f.remove("key")
	wantNames(t, f.prepare("key", layers), "f")
}

func testRestart(t *testing.T, f *fixture) {
	ctx := t.Context()
	layers := f.image(file("f", "1"), file("g", "2"))
	mounted := f.prepare("mounted", layers)
	f.view("view", layers[:1])
	if err := os.WriteFile(filepath.Join(mounted, "mine"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	abandoned := []digest.Digest{digest.FromString("abandoned")}
	stage, err := f.Stage(ctx, abandoned)
	if err != nil {
		t.Fatal(err)
	}
	if err := file("half", "made")(stage.Dir()); err != nil {
		t.Fatal(err)
	}
	before, err := f.Layer(ctx, layers)
	if err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.start()
	wantContent(t, mounted, "mine", "kept")
	wantLayers(t, f, layers...)
	wantSnapshots(t, f, "mounted", "view")
	if after, err := f.Layer(ctx, layers); err != nil || after != before {
		t.Errorf("layer usage %+v, %v; was %+v", after, err, before)
	}
	wantError(t, "remove a used layer", f.RemoveLayer(ctx, layers[1]), snapshot.ErrInUse)
	_, err = f.Prepare(ctx, "mounted", layers)
	wantError(t, "prepare a taken key", err, snapshot.ErrExists)
	f.commit(abandoned, file("whole", "1"))
	wantNames(t, f.view("whole", abandoned), "whole")
	f.unmount(mounted)
	mounts, err := f.Mounts(ctx, "mounted")
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, f.mount(mounts), "mine", "kept")
}

func testCommitRace(t *testing.T, f *fixture) {
	chain := []digest.Digest{digest.FromString(t.Name())}
	stages := make([]snapshot.Stage, 4)
	for i := range stages {
		stage, err := f.Stage(t.Context(), chain)
		if errors.Is(err, snapshot.ErrInUse) && i > 0 {
			t.Skip("the driver opens one stage of a layer at a time")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = stage.Abort(context.WithoutCancel(t.Context())) })
		if err := file("f", "1")(stage.Dir()); err != nil {
			t.Fatal(err)
		}
		stages[i] = stage
	}
	var wg sync.WaitGroup
	for _, stage := range stages {
		wg.Go(func() {
			if err := stage.Commit(t.Context(), snapshot.Usage{Bytes: 1, Inodes: 1}); err != nil {
				t.Errorf("commit: %v", err)
			}
			if _, err := f.Layer(t.Context(), chain); err != nil {
				t.Errorf("layer after commit: %v", err)
			}
		})
	}
	wg.Wait()
	wantLayers(t, f, chain...)
	wantNames(t, f.prepare("key", chain), "f")
}

func testParallelStages(t *testing.T, f *fixture) {
	const count = 8
	chain := make([]digest.Digest, count)
	for i := range chain {
		chain[i] = digest.FromString(fmt.Sprint(t.Name(), i))
	}
	if !f.stagesAboveNothing() {
		t.Skip("the driver stages a layer on its committed lower layers")
	}
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			stage, err := f.Stage(t.Context(), chain[:i+1])
			if err == nil {
				err = errors.Join(file(fmt.Sprint(i), "x")(stage.Dir()), stage.Commit(t.Context(), snapshot.Usage{}))
			}
			if err != nil {
				t.Errorf("layer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	wantNames(t, f.prepare("key", chain), "0", "1", "2", "3", "4", "5", "6", "7")
}

// stagesAboveNothing tells whether a layer can be staged before those below it.
func (f *fixture) stagesAboveNothing() bool {
	chain := []digest.Digest{digest.FromString("absent"), digest.FromString("upper")}
	stage, err := f.Stage(f.t.Context(), chain)
	if err != nil {
		return false
	}
	if err := stage.Abort(f.t.Context()); err != nil {
		f.t.Error(err)
	}
	return true
}

func testPrepareRace(t *testing.T, f *fixture) {
	layers := f.image(file("f", "1"))
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := f.Prepare(t.Context(), "one", layers)
			if err == nil {
				won.Add(1)
				return
			}
			wantError(t, "prepare", err, snapshot.ErrExists)
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 8 got the key, want 1", won.Load())
	}
}

func testConcurrentSnapshots(t *testing.T, f *fixture) {
	ctx := t.Context()
	layers := f.image(file("f", "1"), file("g", "2"))
	var wg sync.WaitGroup
	for i := range 8 {
		key := fmt.Sprint("key", i)
		wg.Go(func() {
			for range 10 {
				_, err := f.Prepare(ctx, key, layers)
				if err == nil {
					_, err = f.Mounts(ctx, key)
				}
				if err == nil {
					_, err = f.Usage(ctx, key)
				}
				if err = errors.Join(err, f.Remove(ctx, key)); err != nil {
					t.Errorf("%s: %v", key, err)
				}
			}
		})
	}
	wg.Wait()
	wantSnapshots(t, f)
	for _, layer := range slices.Backward(layers) {
		if err := f.RemoveLayer(ctx, layer); err != nil {
			t.Errorf("remove layer: %v", err)
		}
	}
}

func testCanceledContext(t *testing.T, f *fixture) {
	layers := f.image(file("f", "1"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Prepare(ctx, "key", layers)
	wantError(t, "prepare", err, context.Canceled)
	_, err = f.Stage(ctx, []digest.Digest{digest.FromString("new")})
	wantError(t, "stage", err, context.Canceled)
	f.prepare("key", layers)
	_, err = f.Usage(ctx, "key")
	wantError(t, "usage", err, context.Canceled)
	_, err = f.Totals(ctx)
	wantError(t, "totals", err, context.Canceled)
	wantSnapshots(t, f, "key")
	wantLayers(t, f, layers...)
}
