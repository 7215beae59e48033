package devmapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/devmapper/dm"
	"criserver/pkg/snapshot/devmapper/pooltest"
	"criserver/pkg/snapshot/overlay"
	"criserver/pkg/snapshot/snapshottest"
)

const deviceSize = 256 << 20

// driver is both drivers, as a daemon has them.
type driver struct {
	*Snapshotter
	layers *overlay.Snapshotter
}

func (d driver) Close(ctx context.Context) error {
	return errors.Join(d.Snapshotter.Close(ctx), d.layers.Close(ctx))
}

func open(t *testing.T, root string, o Options) driver {
	t.Helper()
	layers, err := overlay.New(filepath.Join(root, "overlay"), overlay.Options{MeasureEvery: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), filepath.Join(root, "devmapper"), layers, o)
	if err != nil {
		t.Fatal(errors.Join(err, layers.Close(context.Background())))
	}
	return driver{s, layers}
}

// closeAtEnd ends a driver that the test does not end itself.
func closeAtEnd(t *testing.T, d driver) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := d.Close(ctx); err != nil {
			t.Error(err)
		}
	})
}

var pools sync.Map // *testing.T to the name of its pool

// thinPool returns the name of a thin pool that is the test's, the same one for the same t.
func thinPool(t *testing.T, size int64) string {
	t.Helper()
	if name, ok := pools.Load(t); ok {
		return name.(string)
	}
	name := pooltest.Make(t, size)
	pools.Store(t, name)
	t.Cleanup(func() { pools.Delete(t) })
	return name
}

func TestConformance(t *testing.T) {
	snapshottest.Run(t, "devmapper", func(t *testing.T) snapshot.Snapshotter {
		return open(t, snapshottest.Root(t), Options{Pool: thinPool(t, 2<<30), Size: deviceSize})
	})
}

// commit makes a layer of a file.
func commit(t *testing.T, d driver, name, content string) digest.Digest {
	t.Helper()
	diffID := digest.FromString(name + content)
	stage, err := d.Stage(t.Context(), []digest.Digest{diffID})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stage.Dir(), name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := stage.Commit(t.Context(), snapshot.Usage{Bytes: int64(len(content)) + 4096, Inodes: 2}); err != nil {
		t.Fatal(err)
	}
	return diffID
}

func mount(t *testing.T, d driver, key string, layers ...digest.Digest) string {
	t.Helper()
	mounts, err := d.Prepare(t.Context(), key, layers)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := snapshot.MountAll(mounts, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := snapshot.Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// eventually waits until check has nothing to say.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	said := check()
	for deadline := time.Now().Add(time.Minute); said != "" && time.Now().Before(deadline); said = check() {
		time.Sleep(20 * time.Millisecond)
	}
	if said != "" {
		t.Error(said)
	}
}

// devices are the thin devices that have records.
func (d driver) count() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.devices)
}

func TestDevicesGo(t *testing.T) {
	pool := thinPool(t, 1<<30)
	d := open(t, t.TempDir(), Options{Pool: pool, Size: deviceSize})
	closeAtEnd(t, d)
	layer := commit(t, d, "f", "content")
	dir := mount(t, d, "key", layer)
	if n := d.count(); n != 3 {
		t.Errorf("%d devices, want an empty one, an image and a snapshot", n)
	}
	if err := snapshot.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Remove(t.Context(), "key"), d.RemoveLayer(t.Context(), layer)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		active := pooltest.Run(t, "dmsetup", "ls")
		if n := d.count(); n != 1 || strings.Contains(active, pool+"-") {
			return fmt.Sprintf("%d devices are left, want the empty one; active are %s", n, active)
		}
		return ""
	})
}

// TestBusyDevice removes a snapshot that somebody still uses.
func TestBusyDevice(t *testing.T) {
	d := open(t, t.TempDir(), Options{Pool: thinPool(t, 1<<30), Size: deviceSize})
	closeAtEnd(t, d)
	layer := commit(t, d, "f", "content")
	dir := mount(t, d, "key", layer)
	user, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(snapshot.Unmount(dir), d.Remove(t.Context(), "key")); err != nil {
		t.Fatal(err)
	}
	dir = mount(t, d, "key", layer) // another one of the same key
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o644); err != nil {
		t.Error(err)
	}
	if n := d.count(); n != 4 {
		t.Errorf("%d devices while one is busy, want 4", n)
	}
	user.Close()
	eventually(t, func() string {
		if n := d.count(); n != 3 {
			return fmt.Sprintf("%d devices after it was let go, want 3", n)
		}
		return ""
	})
}

func TestFullDevice(t *testing.T) {
	d := open(t, t.TempDir(), Options{Pool: thinPool(t, 512<<20), Size: LeastSize})
	closeAtEnd(t, d)
	small := commit(t, d, "f", "content")
	dir := mount(t, d, "small", small)
	err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, LeastSize), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than a device has: %v", err)
	}
	large := commit(t, d, "large", strings.Repeat("x", LeastSize))
	_, err = d.Prepare(t.Context(), "large", []digest.Digest{large})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "snapshot.devmapper.size") {
		t.Errorf("an image larger than a device: %v", err)
	}
	huge := commit(t, d, "huge", strings.Repeat("y", 513<<20))
	_, err = d.Prepare(t.Context(), "huge", []digest.Digest{huge})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make it larger") {
		t.Errorf("an image larger than the pool: %v", err)
	}
	if keys, err := d.Snapshots(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("snapshots %v, %v, want one", keys, err)
	}
	eventually(t, func() string {
		if n := d.count(); n != 3 {
			return fmt.Sprintf("%d devices, want three: nothing of what failed", n)
		}
		return ""
	})
}

// TestFullPool fills a pool from inside of a container: new ones are refused, and those that are removed give their space back.
func TestFullPool(t *testing.T) {
	pool := pooltest.Make(t, 96<<20, "error_if_no_space")
	d := open(t, t.TempDir(), Options{Pool: pool, Size: deviceSize})
	closeAtEnd(t, d)
	layer := commit(t, d, "f", "content")
	dir := mount(t, d, "greedy", layer)
	err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 128<<20), 0o644)
	if err == nil {
		var f *os.File
		if f, err = os.Open(filepath.Join(dir, "big")); err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
	}
	if err == nil {
		t.Error("128 MiB were written to a pool of 96")
	}
	for name, call := range map[string]func() error{
		"Ready": func() error { return d.Ready(t.Context()) },
		"Prepare": func() error {
			_, err := d.Prepare(t.Context(), "new", []digest.Digest{commit(t, d, "g", "content")})
			return err
		},
	} {
		if err := call(); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), pool) || !strings.Contains(err.Error(), "make it larger") {
			t.Errorf("%s in a full pool: %v", name, err)
		}
	}
	if err := errors.Join(snapshot.Unmount(dir), d.Remove(t.Context(), "greedy")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if err := d.Ready(t.Context()); err != nil {
			return err.Error()
		}
		return ""
	})
	if data, err := os.ReadFile(filepath.Join(mount(t, d, "new", layer), "f")); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestMissingPool goes on without the pool, and is whole again with it.
func TestMissingPool(t *testing.T) {
	pool, root := thinPool(t, 1<<30), t.TempDir()
	d := open(t, root, Options{Pool: pool, Size: deviceSize})
	layer := commit(t, d, "f", "content")
	dir := mount(t, d, "key", layer)
	if err := errors.Join(snapshot.Unmount(dir), d.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	layers, err := overlay.New(filepath.Join(root, "overlay"), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	other := Options{Pool: "criserver-no-such", Size: deviceSize}
	if s, err := New(t.Context(), filepath.Join(root, "devmapper"), layers, other); err == nil || !strings.Contains(err.Error(), pool) {
		t.Errorf("another pool than that of the snapshots: %v, %v", s, err)
	}
	if err := layers.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The pool that was used last is enough to remove what is there.
	d = open(t, root, Options{})
	if err := d.Ready(t.Context()); err == nil {
		t.Error("ready without a pool")
	}
	if _, err := d.Prepare(t.Context(), "new", []digest.Digest{layer}); err == nil {
		t.Error("a snapshot without a pool")
	}
	d.options.Pool = "criserver-no-such"
	if err := d.Ready(t.Context()); !errors.Is(err, dm.ErrNotFound) {
		t.Errorf("ready with a pool that is missing: %v", err)
	}
	if err := d.Remove(t.Context(), "key"); err != nil {
		t.Errorf("remove without the pool: %v", err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = open(t, root, Options{Pool: pool, Size: deviceSize})
	closeAtEnd(t, d)
	eventually(t, func() string {
		if n := d.count(); n != 2 {
			return fmt.Sprintf("%d devices, want 2: the snapshot was removed", n)
		}
		return ""
	})
	mount(t, d, "key", layer)
	if n := d.count(); n != 3 {
		t.Errorf("%d devices, want 3: the image was there", n)
	}
}

// TestOtherPool: images are copied anew to another pool, once there are no containers in the one before, which gets its space back.
func TestOtherPool(t *testing.T) {
	first, root := thinPool(t, 1<<30), t.TempDir()
	d := open(t, root, Options{Pool: first, Size: deviceSize})
	layer := commit(t, d, "f", "content")
	if err := errors.Join(snapshot.Unmount(mount(t, d, "key", layer)), d.Remove(t.Context(), "key"), d.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	// A pool that is not there, or is none, is a mistake, and costs nothing.
	other := first + "-none"
	pooltest.Run(t, "dmsetup", "create", other, "--noudevsync", "--table", "0 1000 zero")
	t.Cleanup(func() { pooltest.Run(t, "dmsetup", "remove", "--noudevsync", "--retry", other) })
	for name, want := range map[string]error{"criserver-no-such": dm.ErrNotFound, other: errNoPool} {
		d = open(t, root, Options{Pool: name, Size: deviceSize})
		if _, err := d.Prepare(t.Context(), "key", []digest.Digest{layer}); !errors.Is(err, want) {
			t.Errorf("prepare in %s: %v", name, err)
		}
		if err := d.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	d = open(t, root, Options{Pool: first, Size: deviceSize})
	if d.base == 0 || d.images[imageOf([]digest.Digest{layer})] == 0 {
		t.Error("a mistyped pool cost the images of the right one")
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := pooltest.Make(t, 1<<30)
	d = open(t, root, Options{Pool: second, Size: deviceSize})
	closeAtEnd(t, d)
	if data, err := os.ReadFile(filepath.Join(mount(t, d, "key", layer), "f")); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
	eventually(t, func() string {
		if in, n := devicesIn(t, first), d.count(); in != 0 || n != 3 {
			return fmt.Sprintf("%d devices in the former pool, want none; %d have records, want 3", in, n)
		}
		return ""
	})
	if n := devicesIn(t, second); n != 3 {
		t.Errorf("%d devices in the new pool, want 3", n)
	}
}

// devicesIn counts the thin devices with IDs up to 100 that a pool has, by trying to make them.
func devicesIn(t *testing.T, pool string) (n int) {
	t.Helper()
	for id := 1; id <= 100; id++ {
		err := dm.Message(pool, fmt.Sprintf("create_thin %d", id))
		switch {
		case errors.Is(err, unix.EEXIST):
			n++
		case err != nil:
			t.Fatal(err)
		default:
			if err := dm.Message(pool, fmt.Sprintf("delete %d", id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// TestReplacedLayer: snapshots have what a layer is now, and those of before are compared with what it was.
func TestReplacedLayer(t *testing.T) {
	root := t.TempDir()
	o := Options{Pool: thinPool(t, 1<<30), Size: deviceSize}
	d := open(t, root, o)
	layer := commit(t, d, "f", "damaged")
	before := mount(t, d, "before", layer)
	if err := os.WriteFile(filepath.Join(before, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	replace := func(content string, meanwhile func()) {
		t.Helper()
		tree, _, err := d.Tree(t.Context(), layer)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(tree); err != nil { // restaged is what is damaged
			t.Fatal(err)
		}
		stage, err := d.Restage(t.Context(), []digest.Digest{layer})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(stage.Dir(), "f"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if in, ok := stage.(snapshot.Inheritor); ok {
			in.Inherit(nil)
		} else {
			t.Error("the stage does not inherit any more")
		}
		meanwhile()
		if err := stage.Commit(t.Context(), snapshot.Usage{Bytes: 1, Inodes: 1}); err != nil {
			t.Fatal(err)
		}
	}
	has := func(key, want string) {
		t.Helper()
		dir := mount(t, d, key, layer)
		if data, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(data) != want {
			t.Errorf("%s has %q, %v; want %q", key, data, err, want)
		}
		if err := snapshot.Unmount(dir); err != nil {
			t.Error(err)
		}
	}
	changes := func() {
		t.Helper()
		err := d.Changes(t.Context(), "before", func(dir string) error {
			if got := pooltest.Run(t, "ls", dir); got != "mine" {
				t.Errorf("what was written before is %q", got)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	replace("repaired", func() {})
	has("after", "repaired")
	changes()
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = open(t, root, o)
	closeAtEnd(t, d)
	has("restarted", "repaired")
	changes()
	// An image that is being copied while its layer is replaced is copied again.
	half := make(chan record, 1)
	replace("repaired again", func() {
		r, err := d.allocateFrom(func() (record, error) { return d.baseDevice(t.Context()) }, func(base record) record {
			return record{Pool: base.Pool, Kind: kindImage, Image: imageOf([]digest.Digest{layer}), Layers: []digest.Digest{layer}, Size: base.Size}
		})
		if err != nil {
			t.Fatal(err)
		}
		half <- r
	})
	r := <-half
	if err := d.made(r); !errors.Is(err, errRetired) {
		t.Errorf("a copy of what was replaced meanwhile: %v", err)
	}
	d.abandon(r)
	has("last", "repaired again")
	if err := snapshot.Unmount(before); err != nil {
		t.Error(err)
	}
	if err := errors.Join(d.Remove(t.Context(), "before"), d.Remove(t.Context(), "after"), d.Remove(t.Context(), "restarted")); err != nil {
		t.Error(err)
	}
	eventually(t, func() string {
		if n := d.count(); n != 3 {
			return fmt.Sprintf("%d devices are left, want the empty one, the last image and its snapshot", n)
		}
		return ""
	})
}

// TestLostRecord: what a container has written is lost with the record of its device, and nobody is told that it was nothing.
func TestLostRecord(t *testing.T) {
	pool, root := thinPool(t, 1<<30), t.TempDir()
	d := open(t, root, Options{Pool: pool, Size: deviceSize})
	layer := commit(t, d, "f", "content")
	for _, key := range []string{"lost", "empty"} {
		dir := mount(t, d, key, layer)
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "mine"), nil, 0o644), snapshot.Unmount(dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Volume(t.Context(), key, "volume"); err != nil {
			t.Fatal(err)
		}
	}
	lost, _ := d.find("lost")
	empty, _ := d.find("empty")
	if err := errors.Join(d.Close(t.Context()), os.Remove(d.recordPath(lost)), os.Truncate(d.recordPath(empty), 0)); err != nil {
		t.Fatal(err)
	}
	d = open(t, root, Options{Pool: pool, Size: deviceSize})
	closeAtEnd(t, d)
	for _, key := range []string{"lost", "empty"} {
		called := false
		use := func(string) error { called = true; return nil }
		unpack := func(string) ([]string, error) { called = true; return nil, nil }
		_, merr := d.Mounts(t.Context(), key)
		_, verr := d.Volume(t.Context(), key, "another")
		for what, err := range map[string]error{
			"changes": d.Changes(t.Context(), key, use), "fill": d.Fill(t.Context(), key, unpack), "mounts": merr, "volume": verr,
		} {
			if !errors.Is(err, snapshot.ErrNotFound) || called {
				t.Errorf("%s of a snapshot whose record is lost: %v, called %t", what, err, called)
			}
		}
	}
	if keys, err := d.Snapshots(t.Context()); err != nil || len(keys) != 2 {
		t.Errorf("snapshots %v, %v: want those that are lost, to be removed", keys, err)
	}
	if err := errors.Join(d.Remove(t.Context(), "lost"), d.Remove(t.Context(), "empty")); err != nil {
		t.Error(err)
	}
	if keys, err := d.Lower.Snapshots(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("the lower driver has %v, %v", keys, err)
	}
	eventually(t, func() string { // of the lost one nobody knows
		if n, in := d.count(), devicesIn(t, pool); n != 2 || in != 3 {
			return fmt.Sprintf("%d records, want 2; %d devices, want 3", n, in)
		}
		return ""
	})
	mount(t, d, "lost", layer)
}

// TestLongCopy: who gives up finds the image made when he comes again.
func TestLongCopy(t *testing.T) {
	d := open(t, t.TempDir(), Options{Pool: thinPool(t, 1<<30), Size: deviceSize})
	closeAtEnd(t, d)
	layer := commit(t, d, "f", strings.Repeat("x", 64<<20))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := d.Prepare(ctx, "key", []digest.Digest{layer})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "it is not done yet: an image of 1 layers is being copied") {
		t.Errorf("a caller that gives up: %v", err)
	}
	eventually(t, func() string {
		if _, ok := d.findImage(imageOf([]digest.Digest{layer})); !ok {
			return "the copy has not gone on"
		}
		return ""
	})
	mount(t, d, "key", layer)
	if n := d.count(); n != 3 {
		t.Errorf("%d devices, want 3", n)
	}
}

// TestCloseEndsCopies: the end waits for nothing that takes long.
func TestCloseEndsCopies(t *testing.T) {
	d := open(t, t.TempDir(), Options{Pool: thinPool(t, 2<<30), Size: 1 << 30})
	layer := commit(t, d, "f", strings.Repeat("x", 512<<20))
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := d.Prepare(ctx, "key", []digest.Digest{layer})
		failed <- err
	}()
	eventually(t, func() string {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, r := range d.devices {
			if r.Kind == kindImage {
				return ""
			}
		}
		return "no copy has begun"
	})
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gives up: %v", err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, ok := d.findImage(imageOf([]digest.Digest{layer})); ok {
		t.Error("the end has waited for the copy")
	}
}

// TestMountsAtOnce: the kernel does not bear two who make the same block device.
func TestMountsAtOnce(t *testing.T) {
	d := open(t, t.TempDir(), Options{Pool: thinPool(t, 1<<30), Size: deviceSize})
	closeAtEnd(t, d)
	layer := commit(t, d, "f", "content")
	if err := snapshot.Unmount(mount(t, d, "key", layer)); err != nil {
		t.Fatal(err)
	}
	r, _ := d.find("key")
	for range 10 {
		if err := d.deactivate(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if _, err := d.Mounts(ctx, "key"); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
	}
}

// TestUnsureDevices: of devices that were being made when a process was killed, ours are removed, and those of others stay.
func TestUnsureDevices(t *testing.T) {
	pool, root := thinPool(t, 1<<30), t.TempDir()
	d := open(t, root, Options{Pool: pool, Size: deviceSize})
	layer := commit(t, d, "f", "content")
	if err := snapshot.Unmount(mount(t, d, "key", layer)); err != nil {
		t.Fatal(err)
	}
	base := d.devices[d.base]
	own, err := d.allocate(record{Pool: pool, Kind: kindRoot, Key: "killed", Size: deviceSize, FileSystem: base.FileSystem}, d.images[imageOf([]digest.Digest{layer})])
	if err != nil {
		t.Fatal(err)
	}
	foreign, gone := own, own
	foreign.ID, gone.ID = 77, 78
	pooltest.Run(t, "dmsetup", "message", pool, "0", "create_thin 77")
	if err := errors.Join(d.write(foreign, true), d.write(gone, true), d.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	d = open(t, root, Options{Pool: pool, Size: deviceSize})
	closeAtEnd(t, d)
	eventually(t, func() string {
		if n, in := d.count(), devicesIn(t, pool); n != 3 || in != 4 {
			return fmt.Sprintf("%d records, want 3; %d devices, want 4", n, in)
		}
		return ""
	})
	pooltest.Run(t, "dmsetup", "message", pool, "0", "delete 77") // fails if it is gone
}

// TestKilledDuringReplacement: a copy of a damaged layer that was recorded before the layer was replaced.
func TestKilledDuringReplacement(t *testing.T) {
	o, root := Options{Pool: thinPool(t, 1<<30), Size: deviceSize}, t.TempDir()
	d := open(t, root, o)
	layer := commit(t, d, "f", "damaged")
	if err := errors.Join(snapshot.Unmount(mount(t, d, "key", layer)), d.Remove(t.Context(), "key")); err != nil {
		t.Fatal(err)
	}
	stage, err := d.Lower.Restage(t.Context(), []digest.Digest{layer})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stage.Dir(), "f"), []byte("repaired"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stage.Commit(t.Context(), snapshot.Usage{}), d.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	d = open(t, root, o)
	closeAtEnd(t, d)
	if data, err := os.ReadFile(filepath.Join(mount(t, d, "key", layer), "f")); err != nil || string(data) != "repaired" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestFullDisk: what is there starts and goes without room for records.
func TestFullDisk(t *testing.T) {
	o, root := Options{Pool: thinPool(t, 1<<30), Size: deviceSize}, filepath.Join(t.TempDir(), "a[b]*")
	if err := os.MkdirAll(filepath.Join(root, "devmapper"), 0o700); err != nil {
		t.Fatal(err)
	}
	pooltest.Run(t, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", filepath.Join(root, "devmapper"))
	t.Cleanup(func() { pooltest.Run(t, "umount", filepath.Join(root, "devmapper")) })
	d := open(t, root, o)
	layer := commit(t, d, "f", "content")
	if err := errors.Join(snapshot.Unmount(mount(t, d, "a", layer)), snapshot.Unmount(mount(t, d, "b", layer))); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "devmapper/full"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	o.Size *= 2 // the image is of no use any more
	d = open(t, root, o)
	closeAtEnd(t, d)
	if n := d.count(); n != 4 {
		t.Errorf("%d devices after a restart, want 4", n)
	}
	if err := errors.Join(d.Remove(t.Context(), "a"), d.Remove(t.Context(), "b")); err != nil {
		t.Error(err)
	}
	eventually(t, func() string {
		if n, in := d.count(), devicesIn(t, o.Pool); n != 0 || in != 0 {
			return fmt.Sprintf("%d records and %d devices are left", n, in)
		}
		return ""
	})
}

// TestStuckPool: a former pool that does not answer holds up nothing of the present one.
func TestStuckPool(t *testing.T) {
	const size = 256 << 20
	now, root := thinPool(t, 1<<30), t.TempDir()
	before, metadata := now+"-before", now+"-metadata"
	pooltest.Run(t, "dmsetup", "create", metadata, "--noudevsync", "--table", fmt.Sprintf("0 %d linear %s 0", (16<<20)/sector, pooltest.Loop(t, 16<<20)))
	pooltest.Run(t, "dmsetup", "mknodes", metadata)
	t.Cleanup(func() { pooltest.Run(t, "dmsetup", "remove", "--noudevsync", "--retry", metadata) })
	pooltest.Create(t, before, "/dev/mapper/"+metadata, pooltest.Loop(t, size), size)
	t.Cleanup(func() { pooltest.Remove(t, before) })
	d := open(t, root, Options{Pool: before, Size: LeastSize})
	layer := commit(t, d, "f", "content")
	if err := errors.Join(snapshot.Unmount(mount(t, d, "key", layer)), d.Remove(t.Context(), "key")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if n := d.count(); n != 2 {
			return fmt.Sprintf("%d devices, want 2", n)
		}
		return ""
	})
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	pooltest.Run(t, "dmsetup", "suspend", "--noudevsync", metadata)
	resume := sync.OnceFunc(func() { pooltest.Run(t, "dmsetup", "resume", "--noudevsync", metadata) })
	t.Cleanup(resume)
	d = open(t, root, Options{Pool: now, Size: deviceSize})
	closeAtEnd(t, d)
	if err := errors.Join(snapshot.Unmount(mount(t, d, "key", layer)), d.Remove(t.Context(), "key")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if n := d.count(); n != 4 {
			return fmt.Sprintf("%d devices while the former pool does not answer, want 4", n)
		}
		return ""
	})
	resume()
	eventually(t, func() string {
		if n := d.count(); n != 2 {
			return fmt.Sprintf("%d devices, want 2", n)
		}
		return ""
	})
}

// TestDeviceWithoutTable: a process was killed between the steps of making a block device.
func TestDeviceWithoutTable(t *testing.T) {
	d := open(t, t.TempDir(), Options{Pool: thinPool(t, 1<<30), Size: deviceSize})
	closeAtEnd(t, d)
	layer := commit(t, d, "f", "content")
	if err := snapshot.Unmount(mount(t, d, "key", layer)); err != nil {
		t.Fatal(err)
	}
	r, _ := d.find("key")
	name := r.pool().deviceName(r.ID)
	pooltest.Run(t, "dmsetup", "remove", "--noudevsync", "--retry", name)
	pooltest.Run(t, "dmsetup", "create", name, "--noudevsync", "--notable")
	mounts, err := d.Mounts(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := errors.Join(snapshot.MountAll(mounts, dir), snapshot.Unmount(dir)); err != nil {
		t.Error(err)
	}
}

// TestLostDevices makes anew what a pool has lost, and leaves alone what is not its own.
func TestLostDevices(t *testing.T) {
	pool, root := thinPool(t, 1<<30), t.TempDir()
	for id := range 3 {
		pooltest.Run(t, "dmsetup", "message", pool, "0", fmt.Sprintf("create_thin %d", id+2))
	}
	d := open(t, root, Options{Pool: pool, Size: deviceSize})
	closeAtEnd(t, d)
	layer := commit(t, d, "f", "content")
	mount(t, d, "a", layer)
	for kind, id := range map[string]uint32{kindBase: d.base, kindImage: d.images[imageOf([]digest.Digest{layer})]} {
		if id >= 2 && id <= 4 {
			t.Errorf("the %s is the foreign device %d", kind, id)
		}
		pooltest.Run(t, "dmsetup", "message", pool, "0", fmt.Sprintf("delete %d", id))
	}
	dir := mount(t, d, "b", layer)
	if data, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(data) != "content" {
		t.Errorf("the image that was made anew has %q, %v", data, err)
	}
	for id := range 3 {
		pooltest.Run(t, "dmsetup", "message", pool, "0", fmt.Sprintf("delete %d", id+2)) // fails if it is gone
	}
}

// TestKilled looks at what is left of a process that was killed while it made things.
func TestKilled(t *testing.T) {
	pool, root := thinPool(t, 1<<30), t.TempDir()
	d := open(t, root, Options{Pool: pool, Size: deviceSize})
	layer := commit(t, d, "f", "content")
	mount(t, d, "a", layer)
	image := d.devices[d.images[imageOf([]digest.Digest{layer})]]
	// An image half made, with its layers and its device mounted.
	half, err := d.allocate(record{Pool: pool, Kind: kindImage, Image: "half", Size: deviceSize}, d.base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.activate(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	view, err := d.Lower.View(t.Context(), viewPrefix+"9", image.Layers)
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(root, "devmapper", workDir, "9")
	for _, name := range []string{workFrom, workTo, workChanges} {
		if err := os.MkdirAll(filepath.Join(work, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := snapshot.MountAll(view, filepath.Join(work, workFrom)); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = open(t, root, Options{Pool: pool, Size: deviceSize})
	closeAtEnd(t, d)
	eventually(t, func() string {
		lower, err := d.Lower.Snapshots(t.Context())
		if n := d.count(); n != 3 || err != nil || len(lower) != 1 {
			return fmt.Sprintf("%d devices, want 3; lower snapshots %v, %v", n, lower, err)
		}
		return ""
	})
	if names, err := os.ReadDir(filepath.Join(root, "devmapper", workDir)); err != nil || len(names) > 0 {
		t.Errorf("work has %v, %v", names, err)
	}
	mount(t, d, "b", layer)
}

func TestChangesAndFill(t *testing.T) {
	d := open(t, t.TempDir(), Options{Pool: thinPool(t, 1<<30), Size: deviceSize})
	closeAtEnd(t, d)
	layers := []digest.Digest{commit(t, d, "kept", "1"), commit(t, d, "gone", "2")}
	dir := mount(t, d, "a", layers...)
	if err := errors.Join(os.Remove(filepath.Join(dir, "gone")), os.Mkdir(filepath.Join(dir, "new"), 0o711), os.WriteFile(filepath.Join(dir, "new/f"), []byte("3"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var found string
	err := d.Changes(t.Context(), "a", func(dir string) error {
		found = pooltest.Run(t, "find", dir, "-mindepth", "1", "-printf", "%P:%y:%m ")
		if _, err := d.Prepare(t.Context(), "b", layers); err != nil {
			return err
		}
		return d.Fill(t.Context(), "b", func(to string) ([]string, error) { return nil, exec.Command("cp", "-a", dir+"/.", to).Run() })
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"gone:c:", "new:d:711", "new/f:f:600"} {
		if !strings.Contains(found, want) || strings.Contains(found, "kept") {
			t.Errorf("changes are %s, want %s and nothing of what was kept", found, want)
		}
	}
	mounts, err := d.Mounts(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := snapshot.MountAll(mounts, other); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = snapshot.Unmount(other) }()
	list := func(dir string) string {
		return pooltest.Run(t, "sh", "-c", `cd "$1"; find . -printf '%P %y %m %s\n' | sort`, "sh", dir)
	}
	if got, want := list(other), list(dir); got != want {
		t.Errorf("filled, the other has\n%s\nwant\n%s", got, want)
	}
	if err := d.Changes(t.Context(), "none", func(string) error { return nil }); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("changes of no snapshot: %v", err)
	}
}

func TestParseRoom(t *testing.T) {
	const table = "7:0 7:1 128 0 0 "
	for status, want := range map[string]struct {
		free int64
		err  string
	}{
		"1 20/4096 10/1000 - rw discard_passdown queue_if_no_space - 1024":                {990 * 64 << 10, ""},
		"1 20/4096 1000/1000 - rw no_discard_passdown error_if_no_space - 1024":           {0, "it is full"},
		"1 20/4096 999/1000 - out_of_data_space discard_passdown queue_if_no_space - 102": {64 << 10, "it is full"},
		"1 4090/4096 10/1000 - rw discard_passdown queue_if_no_space - 1024":              {990 * 64 << 10, "6 blocks left"},
		"1 20/4096 10/1000 - ro discard_passdown queue_if_no_space - 1024":                {990 * 64 << 10, `mode "ro"`},
		"1 20/4096 10/1000 - rw discard_passdown queue_if_no_space needs_check 1024":      {990 * 64 << 10, "thin_check"},
		"Fail":                  {0, "it has failed"},
		"1 x/4096 10/1000 - rw": {0, "invalid syntax"},
	} {
		r, err := parseRoom(status, table)
		if r.free != want.free || (err == nil) != (want.err == "") || err != nil && !strings.Contains(err.Error(), want.err) {
			t.Errorf("%q: %+v, %v; want %d bytes, %q", status, r, err, want.free, want.err)
		}
	}
}
