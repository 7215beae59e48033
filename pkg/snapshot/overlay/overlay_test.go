package overlay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/fsmount"
	"criserver/pkg/snapshot/snapshottest"
)

func TestConformance(t *testing.T) {
	snapshottest.Run(t, "overlay", func(t *testing.T) snapshot.Snapshotter {
		s, err := New(snapshottest.Root(t), Options{MeasureEvery: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("overlayfs needs root")
	}
}

// open opens the root until the end of the test, or until close is called.
func open(t testing.TB, root string, o Options) (s *Snapshotter, closeIt func()) {
	t.Helper()
	needRoot(t)
	s, err := New(root, o)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	closeIt = func() {
		if closed {
			return
		}
		closed = true
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	t.Cleanup(closeIt)
	return s, closeIt
}

// commit makes a layer; write may be nil.
func commit(t testing.TB, s *Snapshotter, name string, write func(dir string) error, implied ...string) digest.Digest {
	t.Helper()
	diffID := digest.FromString(name)
	stage, err := s.Stage(t.Context(), []digest.Digest{diffID})
	if err != nil {
		t.Fatal(err)
	}
	if write != nil {
		if err := write(stage.Dir()); err != nil {
			t.Fatal(err)
		}
	}
	stage.(snapshot.Inheritor).Inherit(implied)
	if err := stage.Commit(t.Context(), snapshot.Usage{}); err != nil {
		t.Fatal(err)
	}
	return diffID
}

func mountAt(t testing.TB, mounts []snapshot.Mount) string {
	t.Helper()
	target := t.TempDir()
	t.Cleanup(func() {
		if err := snapshot.Unmount(target); err != nil {
			t.Error(err)
		}
	})
	if err := snapshot.MountAll(mounts, target); err != nil {
		t.Fatal(err)
	}
	return target
}

// waitEmpty waits until the sweeper has emptied the directory.
func waitEmpty(t testing.TB, dir string) {
	t.Helper()
	for range 1000 {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s is not emptied", dir)
}

func TestNewRefuses(t *testing.T) {
	needRoot(t)
	s, closeIt := open(t, t.TempDir(), Options{})
	if _, err := New(s.root, Options{}); !errors.Is(err, snapshot.ErrInUse) {
		t.Errorf("root of another driver: %v, want %v", err, snapshot.ErrInUse)
	}
	closeIt()
	if _, err := New(filepath.Join(t.TempDir(), "a:b"), Options{}); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("colon in the root: %v", err)
	}
	// An overlay mount cannot hold upper directories of another.
	lower := t.TempDir()
	for _, dir := range []string{"l", "u", "w"} {
		if err := os.Mkdir(filepath.Join(lower, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nested := mountAt(t, []snapshot.Mount{{
		Type: "overlay", Source: "overlay", Dir: lower,
		Options: []string{"lowerdir=l", "upperdir=u", "workdir=w"},
	}})
	_, err := New(filepath.Join(nested, "root"), Options{})
	if err == nil || !strings.Contains(err.Error(), "cannot hold upper directories") && !strings.Contains(err.Error(), "trusted attributes") {
		t.Errorf("root on overlayfs: %v", err)
	}
	ramfs := mountAt(t, []snapshot.Mount{{Type: "ramfs", Source: "ramfs"}})
	if _, err := New(filepath.Join(ramfs, "root"), Options{}); err == nil {
		t.Error("root on a file system without attributes is accepted")
	}
	if left, err := os.ReadDir(filepath.Join(ramfs, "root", stageDir)); err != nil || len(left) != 0 {
		t.Errorf("refused probe leaves %v, %v", left, err)
	}
}

func TestProbeAgreesWithTheKernel(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	if s.features.volatile == unknown || s.features.indexOff == unknown {
		t.Errorf("features %+v could not be told", s.features)
	}
	layer := commit(t, s, "layer", nil)
	mounts, err := s.Prepare(t.Context(), "key", []digest.Digest{layer})
	if err != nil {
		t.Fatal(err)
	}
	target := mountAt(t, mounts)
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		// The kernel shows it as "volatile", from Linux 6.18 or so as "fsync=volatile".
		if strings.Contains(line, target) && strings.Contains(line, "volatile") != (s.features.volatile == yes) {
			t.Errorf("probed %+v, mounted %s", s.features, line)
		}
	}
}

func TestNewThrowsAwayTheHalfMade(t *testing.T) {
	s, closeIt := open(t, t.TempDir(), Options{})
	kept := commit(t, s, "kept", nil)
	broken := commit(t, s, "broken", nil)
	torn := commit(t, s, "torn", nil)
	for _, key := range []string{"kept", "empty"} {
		if _, err := s.Prepare(t.Context(), key, []digest.Digest{kept}); err != nil {
			t.Fatal(err)
		}
	}
	closeIt()
	stray := filepath.Join(s.root, stageDir, "half", layerTree, "deep", "deeper")
	err := errors.Join(
		os.WriteFile(filepath.Join(s.layerPath(broken), layerFile), []byte(`{"diffID":"sha256:0"}`), 0o600),
		os.Remove(filepath.Join(s.layerPath(torn), layerFile)),
		os.Truncate(filepath.Join(s.snapshotPath("empty"), snapshotRec), 0), // as a power cut may leave it
		os.MkdirAll(stray, 0o755),
		os.MkdirAll(filepath.Join(s.root, trashDir, "old", "a"), 0o755),
		os.WriteFile(filepath.Join(s.root, snapshotsDir, "stray"), nil, 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, s.root, Options{})
	if layers, err := s.ListLayers(t.Context()); err != nil || !slices.Equal(layers, []digest.Digest{kept}) {
		t.Errorf("layers %v, %v", layers, err)
	}
	if keys, err := s.Snapshots(t.Context()); err != nil || !slices.Equal(keys, []string{"kept"}) {
		t.Errorf("snapshots %v, %v", keys, err)
	}
	for dir, want := range map[string]int{layersDir: 1, snapshotsDir: 1, stageDir: 0} {
		if entries, err := os.ReadDir(filepath.Join(s.root, dir)); err != nil || len(entries) != want {
			t.Errorf("%s holds %v, %v; want %d", dir, entries, err, want)
		}
	}
	waitEmpty(t, filepath.Join(s.root, trashDir))
}

// A layer that is lost while a snapshot is made of it is told as such, and a new one takes its place.
func TestLostLayer(t *testing.T) {
	s, closeIt := open(t, t.TempDir(), Options{})
	layer := commit(t, s, "layer", nil)
	if _, err := s.Prepare(t.Context(), "key", []digest.Digest{layer}); err != nil {
		t.Fatal(err)
	}
	closeIt()
	if err := os.RemoveAll(s.layerPath(layer)); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, s.root, Options{})
	if _, err := s.Mounts(t.Context(), "key"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("mounts of a snapshot without its layer: %v", err)
	}
	commit(t, s, "layer", nil)
	if _, err := s.Mounts(t.Context(), "key"); err != nil {
		t.Errorf("mounts after the layer is back: %v", err)
	}
	if err := s.Remove(t.Context(), "key"); err != nil {
		t.Error(err)
	}
	if err := s.RemoveLayer(t.Context(), layer); err != nil {
		t.Error(err)
	}
}

func TestRemovedContentIsDeleted(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	layer := commit(t, s, "layer", func(dir string) error {
		return os.MkdirAll(filepath.Join(dir, "a/b/c/d/e/f/g"), 0o755)
	})
	if _, err := s.Prepare(t.Context(), "key", []digest.Digest{layer}); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLayer(t.Context(), layer); err != nil {
		t.Fatal(err)
	}
	waitEmpty(t, filepath.Join(s.root, trashDir))
}

func TestPageHolds128Layers(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	var layers []digest.Digest
	for i := range 128 {
		layers = append(layers, commit(t, s, fmt.Sprint(i), nil))
	}
	key := hex.EncodeToString(make([]byte, 32)) // as long as a container's id
	mounts, err := s.Prepare(t.Context(), key, layers)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(strings.Join(mounts[0].Options, ",")); n > 4095 {
		t.Errorf("options of %d bytes, mount(2) takes 4095", n)
	}
}

func TestTooManyLayers(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	var layers []digest.Digest
	for i := range maxLayers + 1 { // in memory only: what counts is that they are refused
		diffID := digest.FromString(fmt.Sprint(i))
		s.layers[diffID] = &layer{layerRecord: layerRecord{DiffID: diffID}}
		layers = append(layers, diffID)
	}
	if _, err := s.Prepare(t.Context(), "key", layers); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("prepare of %d layers: %v", len(layers), err)
	}
	for _, l := range s.layers {
		if l.refs != 0 {
			t.Fatalf("refused snapshot holds %d references to a layer", l.refs)
		}
	}
}

func TestMostLayers(t *testing.T) {
	if ok, err := fsmount.LowerdirPlus(); err != nil || !ok {
		t.Skipf("this kernel has no lowerdir+ (%v)", err)
	}
	s, _ := open(t, t.TempDir(), Options{})
	s.syncer.Sync = func(string) error { return nil } // 499 of them, of nothing
	var layers []digest.Digest
	for i := range maxLayers {
		layers = append(layers, commit(t, s, fmt.Sprint(i), func(dir string) error {
			return os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644)
		}))
	}
	mounts, err := s.Prepare(t.Context(), "key", layers)
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(mountAt(t, mounts)); err != nil || len(entries) != maxLayers {
		t.Errorf("%d files, %v; want %d", len(entries), err, maxLayers)
	}
}

func TestPrepareIgnoresUmask(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	layer := commit(t, s, "layer", nil)
	old := unix.Umask(0o077)
	mounts, err := s.Prepare(t.Context(), "key", []digest.Digest{layer})
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(mountAt(t, mounts))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("root of the container: %v, %v; want 0755", info.Mode(), err)
	}
}

func BenchmarkPrepareRemove(b *testing.B) {
	s, _ := open(b, b.TempDir(), Options{})
	var layers []digest.Digest
	for i := range 5 {
		layers = append(layers, commit(b, s, fmt.Sprint(i), nil))
	}
	for b.Loop() {
		if _, err := s.Prepare(b.Context(), "key", layers); err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(b.Context(), "key"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPrepare(b *testing.B) {
	s, _ := open(b, b.TempDir(), Options{})
	layer := commit(b, s, "layer", nil)
	n := 0
	for b.Loop() {
		n++
		if _, err := s.Prepare(b.Context(), fmt.Sprint("key", n), []digest.Digest{layer}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestMoreLayersThanAPageHolds stacks layers whose names do not fit into the options of mount(2): it needs the kernel's
// lowerdir+, and without it a clear error.
func TestMoreLayersThanAPageHolds(t *testing.T) {
	s, _ := open(t, t.TempDir(), Options{})
	var layers []digest.Digest
	for i := range 300 {
		layers = append(layers, digest.FromString(fmt.Sprint(i)))
		stage, err := s.Stage(t.Context(), layers)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(stage.Dir(), fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := stage.Commit(t.Context(), snapshot.Usage{}); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := s.Prepare(t.Context(), "many", layers)
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	err = snapshot.MountAll(mounts, target)
	t.Cleanup(func() { _ = snapshot.Unmount(target) })
	if able, probeErr := fsmount.LowerdirPlus(); !able {
		if !errors.Is(err, unix.E2BIG) {
			t.Errorf("without lowerdir+ (%v): %v, want E2BIG", probeErr, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(target); err != nil || len(entries) != len(layers) {
		t.Errorf("%d files are seen, %v; want %d", len(entries), err, len(layers))
	}
}
