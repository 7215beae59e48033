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

func TestFullDeviceAndPool(t *testing.T) {
	d := open(t, t.TempDir(), Options{Pool: thinPool(t, 128<<20), Size: LeastSize})
	closeAtEnd(t, d)
	small := commit(t, d, "f", "content")
	dir := mount(t, d, "small", small)
	err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, LeastSize), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than a device has: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "big")); err != nil {
		t.Error(err)
	}
	large := commit(t, d, "large", strings.Repeat("x", LeastSize))
	_, err = d.Prepare(t.Context(), "large", []digest.Digest{large})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "snapshot.devmapper.size") && !strings.Contains(err.Error(), "thin pool") {
		t.Errorf("an image larger than a device: %v", err)
	}
	huge := commit(t, d, "huge", strings.Repeat("y", 129<<20))
	_, err = d.Prepare(t.Context(), "huge", []digest.Digest{huge})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make it larger") {
		t.Errorf("an image larger than the pool: %v", err)
	}
	if keys, err := d.Snapshots(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("snapshots %v, %v, want one", keys, err)
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
	d.pool.name, d.options.Pool = "criserver-no-such", "criserver-no-such"
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

// TestOtherPool: images are copied anew to another pool, once there are no containers in the one before.
func TestOtherPool(t *testing.T) {
	first, root := thinPool(t, 1<<30), t.TempDir()
	d := open(t, root, Options{Pool: first, Size: deviceSize})
	layer := commit(t, d, "f", "content")
	if err := errors.Join(snapshot.Unmount(mount(t, d, "key", layer)), d.Remove(t.Context(), "key"), d.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	d = open(t, root, Options{Pool: pooltest.Make(t, 1<<30), Size: deviceSize})
	closeAtEnd(t, d)
	if n := d.count(); n != 0 {
		t.Errorf("%d devices in a new pool", n)
	}
	if data, err := os.ReadFile(filepath.Join(mount(t, d, "key", layer), "f")); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
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
	half, err := d.allocate(record{Kind: kindImage, Image: "half", Size: deviceSize}, d.base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.pool.activate(half.ID, half.Size); err != nil {
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
