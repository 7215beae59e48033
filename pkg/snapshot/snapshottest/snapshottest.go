// Package snapshottest is the conformance suite of snapshot drivers. It makes real mounts and needs root.
package snapshottest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
)

// New opens a driver's storage for a test. Called again with the same t it opens the same storage, as a daemon does
// that was started again; the suite has closed the driver before, if it has a method Close(context.Context) error.
// Root gives a directory that fits. A driver that measures usage from time to time had better do it often.
type New = func(t *testing.T) snapshot.Snapshotter

var roots sync.Map // *testing.T to its directory

// Root returns a directory for the test's storage, the same one for the same t, deleted at the test's end.
func Root(t *testing.T) string {
	if dir, ok := roots.Load(t); ok {
		return dir.(string)
	}
	dir := t.TempDir()
	roots.Store(t, dir)
	t.Cleanup(func() { roots.Delete(t) })
	return dir
}

// Run holds the driver to the contract of package snapshot.
func Run(t *testing.T, name string, open New) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	tests := []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"LayersStack", testLayersStack},
		{"Whiteout", testWhiteout},
		{"WhiteoutOfWhiteout", testWhiteoutOfWhiteout},
		{"OpaqueDir", testOpaqueDir},
		{"OpaqueRoot", testOpaqueRoot},
		{"FileReplacesDir", testFileReplacesDir},
		{"CopyUp", testCopyUp},
		{"RemoveAndRecreateDir", testRemoveAndRecreateDir},
		{"HardLinks", testHardLinks},
		{"Xattrs", testXattrs},
		{"DeviceNodes", testDeviceNodes},
		{"ModesAndOwners", testModesAndOwners},
		{"ManyLayers", testManyLayers},
		{"RepeatedLayers", testRepeatedLayers},
		{"NoLayers", testNoLayers},
		{"ViewIsReadOnly", testViewIsReadOnly},
		{"MountsAgain", testMountsAgain},
		{"Usage", testUsage},
		{"Totals", testTotals},
		{"Volumes", testVolumes},
		{"StageErrors", testStageErrors},
		{"SnapshotErrors", testSnapshotErrors},
		{"LayerInUse", testLayerInUse},
		{"AbortLeavesNothing", testAbortLeavesNothing},
		{"RemoveIsIdempotent", testRemoveIsIdempotent},
		{"RemoveDropsContent", testRemoveDropsContent},
		{"Restart", testRestart},
		{"CommitRace", testCommitRace},
		{"ParallelStages", testParallelStages},
		{"PrepareRace", testPrepareRace},
		{"ConcurrentSnapshots", testConcurrentSnapshots},
		{"CanceledContext", testCanceledContext},
	}
	for _, test := range tests {
		t.Run(name+"/"+test.name, func(t *testing.T) {
			f := &fixture{t: t, open: open}
			f.start()
			t.Cleanup(f.stop)
			test.run(t, f)
		})
	}
}

// fixture is a driver under test.
type fixture struct {
	snapshot.Snapshotter
	t    *testing.T
	open New
}

func (f *fixture) start() { f.Snapshotter = f.open(f.t) }

func (f *fixture) stop() {
	c, ok := f.Snapshotter.(interface{ Close(context.Context) error })
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		f.t.Errorf("close: %v", err)
	}
}

// tree writes content into a directory.
type tree func(dir string) error

// image commits the trees as layers, lowest first, and returns their diffIDs.
func (f *fixture) image(trees ...tree) []digest.Digest {
	f.t.Helper()
	var chain []digest.Digest
	for i, content := range trees {
		chain = append(chain, digest.FromString(fmt.Sprint(f.t.Name(), i)))
		f.commit(chain, content)
	}
	return chain
}

func (f *fixture) commit(chain []digest.Digest, content tree) {
	f.t.Helper()
	stage, err := f.Stage(f.t.Context(), chain)
	if err != nil {
		f.t.Fatalf("stage: %v", err)
	}
	if err := content(stage.Dir()); err != nil {
		f.t.Fatalf("write layer: %v", err)
	}
	usage, err := snapshot.DiskUsage(f.t.Context(), stage.Dir())
	if err != nil {
		f.t.Fatal(err)
	}
	if err := stage.Commit(f.t.Context(), usage); err != nil {
		f.t.Fatalf("commit: %v", err)
	}
}

// prepare returns the root file system of a new writable snapshot.
func (f *fixture) prepare(key string, layers []digest.Digest) string {
	f.t.Helper()
	mounts, err := f.Prepare(f.t.Context(), key, layers)
	if err != nil {
		f.t.Fatalf("prepare: %v", err)
	}
	return f.mount(mounts)
}

// view returns the root file system of a new read-only snapshot.
func (f *fixture) view(key string, layers []digest.Digest) string {
	f.t.Helper()
	mounts, err := f.View(f.t.Context(), key, layers)
	if err != nil {
		f.t.Fatalf("view: %v", err)
	}
	return f.mount(mounts)
}

func (f *fixture) mount(mounts []snapshot.Mount) string {
	f.t.Helper()
	target := f.t.TempDir()
	f.t.Cleanup(func() { f.unmount(target) })
	if err := snapshot.MountAll(mounts, target); err != nil {
		f.t.Fatalf("mount: %v", err)
	}
	return target
}

func (f *fixture) unmount(target string) {
	f.t.Helper()
	if err := snapshot.Unmount(target); err != nil {
		f.t.Errorf("unmount: %v", err)
	}
}

func (f *fixture) remove(key string) {
	f.t.Helper()
	if err := f.Remove(f.t.Context(), key); err != nil {
		f.t.Errorf("remove: %v", err)
	}
}

// file writes a regular file and its parents.
func file(name, content string) tree {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(content), 0o644)
	}
}

func all(trees ...tree) tree {
	return func(dir string) error {
		for _, content := range trees {
			if err := content(dir); err != nil {
				return err
			}
		}
		return nil
	}
}

func wantContent(t *testing.T, dir, name, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || string(got) != want {
		t.Errorf("%s: content %q, %v; want %q", name, got, err, want)
	}
}

func wantAbsent(t *testing.T, dir, name string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
		t.Errorf("%s: exists (lstat: %v)", name, err)
	}
}

// wantNames compares what a directory lists.
func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
		return
	}
	got := []string{}
	for _, entry := range entries {
		if entry.Name() != "lost+found" { // of ext4, on drivers with a device
			got = append(got, entry.Name())
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s lists %q, want %q", filepath.Base(dir), got, want)
	}
}
